"""The images that a run shows while it trains: samples, reconstructions, or drawn captions."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data import ImageSet
from ddpm_jax.data.pixels import to_floats, to_uint8
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.sampling import Sampling, step_count, with_learned_variance
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import posterior_sample
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.runs.latents import Latents, load_autoencoder
from ddpm_jax.runs.text_model import text_model
from ddpm_jax.text_to_image.draw import Request, draw_images


def sample_grid(config: Config, params: Params, images: ImageSet, workdir: Path) -> np.ndarray:
    """Draw the uint8 images (n, h, w, c) of a grid during training, with the run's seed.

    An autoencoder shows images and their reconstructions in turn.
    """
    if isinstance(config, LatentConfig):
        return _draw_captions(config, params, images, workdir)
    if isinstance(config.model, ImageAutoencoder):
        return _reconstructions(config, params, images)
    num_images = config.log.samples
    states = generate(
        config,
        params,
        num_images=num_images,
        batch_size=num_images,
        seed=config.training.seed,
        sampling=shortened(config),
    )
    return states[-1]


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


def _draw_captions(config: LatentConfig, params: Params, images: Any, workdir: Path) -> np.ndarray:
    """One image for each of the captions, which repeat."""
    assert isinstance(images, Latents)
    autoencoder, _ = load_autoencoder(config, workdir)
    model = text_model(config, workdir, params, autoencoder, images.scaling_factor)
    count = config.log.samples
    captions = config.captions or images.captions
    prompts = [captions[i % len(captions)] for i in range(count)]
    request = Request(prompts=prompts, seed=config.training.seed)
    return draw_images(model, request, shortened(config), batch_size=count, progress=False)


def _reconstructions(config: Config, params: Params, images: ImageSet) -> np.ndarray:
    """The first images and their reconstructions in turn."""
    count = max(config.log.samples // 2, 1)
    originals = images.read(np.arange(count) % len(images))["image"]
    restored = to_uint8(reconstruct(config.model, params, to_floats(originals)))
    pairs = np.stack([originals, restored], 1)  # (n, 2, h, w, c)
    return pairs.reshape(-1, *originals.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(model: ImageAutoencoder, params: Params, images: Any) -> Any:
    """The images that an autoencoder makes of the means of their latents."""
    return model.decode(params, posterior_sample(model.encode(params, images), None))
