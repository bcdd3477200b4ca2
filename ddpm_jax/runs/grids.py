"""The images that a run shows while it trains: samples, reconstructions, drawn captions, noise."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config, RunConfig
from ddpm_jax.data import ImageSet
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.conditions import IMAGE, ConditionedImages, condition_values_of
from ddpm_jax.data.pixels import choose_channels, to_floats, to_image, to_uint8
from ddpm_jax.data.values import Levels
from ddpm_jax.figures import image_grids, plots
from ddpm_jax.generation.conditions import conditions_at
from ddpm_jax.generation.generate import generate, guided_network
from ddpm_jax.generation.sampling import Sampling, step_count, with_learned_variance
from ddpm_jax.generation.walk import noise_ladder, predict_x0
from ddpm_jax.latent_config import AutoencoderConfig, LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import posterior_sample
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.runs.latents import Latents
from ddpm_jax.runs.text_model import text_model
from ddpm_jax.samplers import sample_keys
from ddpm_jax.text_to_image.draw import draw_images
from ddpm_jax.text_to_image.request import Request

NUM_LEVELS = 8
"""Number of noise levels, with one image each, in a preview and in the rows of predictions."""
PREVIEW_IMAGES = 100


def samples(config: Config, params: Params, images: ImageSet) -> np.ndarray:
    """Draw the samples of a grid during training, with the run's seed, as uint8 (n, h, w, c).

    A sample that is conditioned on an image has that image on its left and the original on its
    right, in colour. `log.channels` also choose those of a condition with as many channels.
    """
    beside = isinstance(images, ConditionedImages) and images.part == IMAGE
    num_images = -(-config.log.samples // 3) if beside else config.log.samples
    indices = np.arange(num_images) % len(images)
    states = generate(
        config,
        params,
        num_images=num_images,
        batch_size=num_images,
        seed=config.training.seed,
        sampling=shortened(config),
        to_values=images.values.to_values,
        **conditions_at(config.model, images, indices),
    )
    channels = config.log.channels
    drawn = choose_channels(images.values.show(states[-1]), channels)
    if not beside:
        return drawn
    batch = images.read(indices)
    condition = batch["condition_image"]
    same = channels if condition.shape[-1] == config.model.channels else ()
    given = shown(condition_values_of(images), condition, same)
    original = shown(images.values, to_floats(batch["image"]), channels)
    return np.concatenate([in_colour(row) for row in (given, drawn, original)], 2)


def in_colour(images: np.ndarray) -> np.ndarray:
    """Images (n, h, w, c) as RGB (n, h, w, 3), both uint8."""
    return np.stack([np.asarray(to_image(image).convert("RGB")) for image in images])


def shortened(config: Config) -> Sampling:
    """The run's sampling with at most `log.sample_steps` steps.

    Variance `learned` needs all of them.
    """
    sampling = config.sampling
    steps = step_count(config.objective, sampling)
    maximum = config.log.sample_steps
    options = with_learned_variance(config.objective, sampling).options
    needs_all_steps = options.get("variance") == "learned"
    if maximum is None or maximum >= steps or needs_all_steps:
        return sampling
    return dataclasses.replace(sampling, steps=maximum, timesteps=None)


def drawn_captions(config: LatentConfig, params: Params, latents: Latents) -> np.ndarray:
    """One image (n, h, w, c) for each of the captions, which repeat."""
    model = text_model(
        config, params, latents.autoencoder, latents.tokenizer_files, latents.scaling_factor
    )
    count = config.log.samples
    captions = config.captions or latents.captions
    prompts = [captions[i % len(captions)] for i in range(count)]
    request = Request(prompts=prompts, seed=config.training.seed)
    return draw_images(model, request, shortened(config), batch_size=count, progress=False)


def reconstructions(config: AutoencoderConfig, params: Params, images: ImageSet) -> np.ndarray:
    """The first images and their reconstructions in turn, as uint8 (n, h, w, c)."""
    count = max(config.log.samples // 2, 1)
    originals = images.read(np.arange(count) % len(images))["image"]
    restored = to_uint8(reconstruct(config.model, params, to_floats(originals)))
    pairs = np.stack([originals, restored], 1)  # (n, 2, h, w, c)
    return pairs.reshape(-1, *originals.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: ImageAutoencoder, params: Params, images: Any) -> Any:
    """The images that an autoencoder makes of the means of their latents."""
    return model.decode(params, posterior_sample(model.encode(params, images), None))


def prediction_rows(
    config: Config, params: Params, images: ImageSet
) -> list[tuple[str, np.ndarray]]:
    """Named rows of uint8 images: input, noisy and prediction, as in the corruption tutorial.

    Each row has eight images at eight noise levels. The prediction is the estimate of x0.
    """
    x0, xt, t = _noise_levels(config, images)
    batch = images.read(np.arange(NUM_LEVELS) % len(images))
    network = guided_network(config.model, params, config.model.condition_of(batch))
    prediction = _predict(config.objective, network, xt, t)
    rows = {"input": x0, "noisy": xt, "prediction": prediction}
    return [
        (name, shown(images.values, np.asarray(row), config.log.channels))
        for name, row in rows.items()
    ]


def shown(values: Levels, x: np.ndarray, channels: Sequence[int] = ()) -> np.ndarray:
    """The uint8 of a picture of these channels of what a network takes or draws."""
    return choose_channels(values.show(values.to_values(x)), channels)


_predict = jax.jit(predict_x0, static_argnums=0)


def _noise_levels(config: Config, images: ImageSet):
    """The first images x0, noised to xt at timesteps t that are spread evenly over the schedule."""
    indices = np.arange(NUM_LEVELS) % len(images)
    x0 = jnp.asarray(to_floats(images.read(indices)["image"]))  # (8, h, w, c)
    keys = sample_keys(config.training.seed, jnp.arange(NUM_LEVELS, dtype=jnp.int32))
    xt, t = noise_ladder(keys, config.objective, x0)
    return x0, xt, t


def preview_data(config: RunConfig, images: ImageSet, workdir: Path) -> None:
    """Save the first 100 images of a run to preview/data.png."""
    batch = batch_at(images, config.training.seed, 0, PREVIEW_IMAGES, flip=config.data.flip)
    pictures = shown(images.values, batch["image"], config.log.channels)
    image_grids.save_images(pictures, workdir / "preview" / "data.png")


def preview_noising(config: Config, images: ImageSet, workdir: Path) -> None:
    """Save preview/data.png, and eight images at eight noise levels to preview/noise.png."""
    preview_data(config, images, workdir)
    x0, xt, _ = (np.asarray(x) for x in _noise_levels(config, images))
    # Divide each image by its largest magnitude if that exceeds 1, to show the whole range.
    span = np.abs(xt).max((1, 2, 3), keepdims=True)  # (8, 1, 1, 1)
    unclipped = xt / np.maximum(span, 1)
    channels = config.log.channels
    rows = [
        ("input", shown(images.values, x0, channels)),
        ("noisy, clipped", shown(images.values, xt, channels)),
        ("noisy, unclipped", choose_channels(to_uint8(unclipped), channels)),
    ]
    plots.labelled_rows(rows, workdir / "preview" / "noise.png")
