"""Corrupt images with uniform noise, learn to predict the clean image, sample in five steps.

    python examples/corruption.py    # MNIST from TFDS; --data digits needs no download

An amount of noise in [0, 1] replaces the noise schedule. The network does not see it.
Pixels are in [0, 1] because BasicUNet ends in a SiLU.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ddpm_jax import draws
from ddpm_jax.data.batches import batch_at, steps_per_epoch
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.figures.plots import labelled_rows
from ddpm_jax.files import check_writable
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.samplers import sample_keys
from ddpm_jax.training.step import example_keys, init_state, make_train_step, training_keys

MODEL = BasicUNet(image_size=28, channels=1)  # 309,057 parameters; ignores the timestep
LEARNING_RATE = 1e-3
SAMPLING_STEPS = 5
SHOWN = 8  # images in a row of the figures
Images = Float[Array, "b h w c"]
predict_x0 = jax.jit(lambda params, x: MODEL.apply(params, x, jnp.zeros(len(x), jnp.int32)))


def corrupt(x0: Images, amount: Float[Array, "b 1 1 1"], noise: Images) -> Images:
    """The mixture x0 (1 - amount) + noise amount: x0 at amount 0, noise at amount 1."""
    return x0 * (1 - amount) + noise * amount


def loss(params: dict, keys: Key[Array, " b"], batch: dict[str, Array]) -> Float[Array, " b"]:
    """Mean squared error of each predicted clean image, at an amount uniform on [0, 1)."""
    x0 = (batch["image"] + 1) / 2  # [-1, 1] -> [0, 1]
    amount = draws.uniform(draws.fold_in(keys, 0), (1, 1, 1))  # (b, 1, 1, 1)
    noise = draws.uniform(draws.fold_in(keys, 1), x0.shape[1:])  # (b, h, w, c)
    prediction = predict_x0(params, corrupt(x0, amount, noise))
    return jnp.mean((prediction - x0) ** 2, axis=(1, 2, 3))  # (b, h, w, c) -> (b,)


def sample(params: dict, noise: Images, steps: int) -> tuple[list[Images], list[Images]]:
    """Mix predictions into the noise. Return steps + 1 states, noise first, and all predictions."""
    states = [noise]
    predictions = []
    for i in range(steps):
        mix = 1 / (steps - i)  # 1 in the last step: the sample is the last prediction
        predictions.append(predict_x0(params, states[-1]))
        states.append(states[-1] * (1 - mix) + predictions[-1] * mix)
    return states, predictions


def row(label: str, *images: Images) -> tuple[str, np.ndarray]:
    """A labelled row of a figure, from images in [0, 1]."""
    return label, to_uint8(2 * np.concatenate(images) - 1)  # [0, 1] -> [-1, 1] -> uint8


def main(args: list[str] | None = None) -> None:
    """Train the network; plot its predictions, and its samples at every step."""
    parser = argparse.ArgumentParser(description="Train on corrupted images, and sample.")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--data-dir", help="TFDS folder that holds mnist (default: TFDS's own)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--max-steps", type=int, help="stop after this many steps")
    parser.add_argument("--out", default="runs/corruption", metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    reconstructions = Path(options.out) / "reconstructions.png"
    check_writable(reconstructions)
    source = Digits() if options.data == "digits" else Tfds(name="mnist", data_dir=options.data_dir)
    images = source.load(MODEL.image_size, MODEL.channels)

    init_key, train_key = training_keys(options.seed)
    tx = optax.adam(LEARNING_RATE)
    state = init_state(MODEL.init(init_key), tx)
    train_step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
    epoch_steps = steps_per_epoch(len(images), options.batch_size)
    losses = []
    for step in range(options.epochs * epoch_steps)[: options.max_steps]:
        batch = batch_at(images, options.seed, step, options.batch_size)
        batch["key"] = example_keys(train_key, step, jnp.arange(options.batch_size))
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
        if (step + 1) % epoch_steps == 0 or step + 1 == options.max_steps:
            mean = np.mean(losses[-1 - step % epoch_steps :])
            print(f"Finished epoch {step // epoch_steps + 1}, mean loss {mean:.4f}", flush=True)

    x0 = (batch_at(images, options.seed, 0, SHOWN)["image"] + 1) / 2
    noise = draws.uniform(sample_keys(options.seed, jnp.arange(SHOWN)), x0.shape[1:])
    corrupted = corrupt(x0, jnp.linspace(0, 1, SHOWN)[:, None, None, None], noise)
    prediction = predict_x0(state.params, corrupted)
    rows = [row("input", x0), row("corrupted", corrupted), row("prediction", prediction)]
    labelled_rows(rows, reconstructions)

    states, predictions = sample(state.params, noise, SAMPLING_STEPS)
    gap = jnp.ones_like(noise[:1])  # a white image between the states and the predictions
    rows = [row(f"step {i + 1}", states[i], gap, predictions[i]) for i in range(SAMPLING_STEPS)]
    labelled_rows(rows, f"{options.out}/sampling.png")
    np.savetxt(f"{options.out}/losses.csv", losses)


if __name__ == "__main__":
    main()
