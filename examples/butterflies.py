"""The butterflies tutorial: images and noise, training, loss, samples by pipeline and by loop.

    python examples/butterflies.py    # minutes on a GPU, about an hour on two CPU cores

It writes pictures to runs/butterflies_by_hand.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax.data.batches import batch_at, steps_per_epoch
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.huggingface import HuggingFace
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.figures.plots import loss_curve

DATA = "huggan/smithsonian_butterflies_subset"  # or a folder of images
OUT = Path("runs/butterflies_by_hand")
WIDTHS, ATTENTION = (64, 128, 128, 256), (False, False, True, True)  # 18,536,323 parameters
BATCH_SIZE, EPOCHS, SAMPLING_STEPS = 64, 30, 1000
source = Folder if Path(DATA).is_dir() else HuggingFace
images = source(path=DATA, resize="squash").load(image_size=32, channels=3)
model = dj.UNet(image_size=32, channels=3, widths=WIDTHS, attention=ATTENTION)
objective = Objective(schedule="squaredcos")  # predicts eps
keys = dj.sample_keys(seed=0, indices=jnp.arange(8))
x0 = batch_at(images, seed=0, step=0, batch_size=8)["image"]  # (8, 32, 32, 3) in [-1, 1]
dj.save_images(dj.to_uint8(x0), OUT / "batch.png")
noisy, _ = dj.noise_ladder(keys, objective, jnp.asarray(x0))  # image i at the i-th of 8 levels
dj.save_images(dj.to_uint8(np.asarray(noisy)), OUT / "noise.png")

tx = optax.adamw(4e-4, weight_decay=0.01)
init_key, step_key = dj.training_keys(seed=0)
state = dj.init_state(model.init(init_key), tx)
train_step = jax.jit(dj.make_train_step(dj.model_loss(model, objective), tx), donate_argnums=0)
epoch_steps, losses = steps_per_epoch(len(images), BATCH_SIZE), []
for step in range(EPOCHS * epoch_steps):
    batch = batch_at(images, seed=0, step=step, batch_size=BATCH_SIZE, flip=True)
    batch["key"] = dj.example_keys(step_key, step, jnp.arange(BATCH_SIZE))
    state, metrics = train_step(state, batch)
    losses.append(float(metrics["loss"]))
    if (step + 1) % (5 * epoch_steps) == 0:
        print(f"Epoch {(step + 1) // epoch_steps}, mean loss {np.mean(losses[-epoch_steps:]):.5f}")
loss_curve(np.arange(len(losses)), losses, OUT / "loss.png", "Butterflies")  # linear and log
pipeline = dj.Pipeline(dj.ModelSpec(model=model, objective=objective), state.params)
dj.save_images(pipeline(batch_size=8, steps=SAMPLING_STEPS).arrays, OUT / "pipeline.png")
schedule, network = objective.noise_schedule, Partial(model.apply, state.params)
denoise = dj.make_denoiser(schedule, network, objective.target)
grid = dj.make_grid(schedule, dj.spaced(objective.timesteps, SAMPLING_STEPS))
xt = dj.initial_noise(keys, model.image_shape)  # (8, 32, 32, 3)
sampler_state, sampler_step = dj.ddpm().init(xt), jax.jit(dj.ddpm().step)
for i in range(SAMPLING_STEPS):
    xt, sampler_state = sampler_step(keys, denoise, xt, grid.row(i), sampler_state)
dj.save_images(dj.to_uint8(np.asarray(xt)), OUT / "loop.png")
