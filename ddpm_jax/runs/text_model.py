"""A latent run as Stable Diffusion by parts: to draw from prompts, and to export."""

import dataclasses
from typing import Any

import jax

from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.pretrained.latent_scheduler import latent_scheduler_config
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.runs.latents import (
    TrainedAutoencoder,
    load_autoencoder,
    owner_of,
    read_tokenizer,
    saved_scaling_factor,
)
from ddpm_jax.runs.sources import RunSource


def open_text_model(run: RunSource, params: Params, dtype: str = "float32") -> StableDiffusion:
    """The model of a checkpoint of a latent run, with these parameters of its network.

    Raise ValueError if the run's autoencoder has changed since the checkpoint.
    """
    assert isinstance(run.config, LatentConfig)
    owner = owner_of(run.config, run.folder)
    autoencoder = load_autoencoder(owner)
    scale = saved_scaling_factor(run.folder, run.step, autoencoder)
    return text_model(run.config, params, autoencoder, read_tokenizer(owner), scale, dtype)


def without_weights(run: RunSource) -> StableDiffusion:
    """The model of a checkpoint of a latent run, without parameters and with a scale of 1.

    Raise FileNotFoundError if the tokenizer is lost.
    """
    assert isinstance(run.config, LatentConfig)
    autoencoder = TrainedAutoencoder(run.folder, run.config.autoencoder.model, {}, "")
    tokenizer_files = read_tokenizer(owner_of(run.config, run.folder))
    params: Params = {"text_encoder": {}, "unet": {}}
    return text_model(run.config, params, autoencoder, tokenizer_files, scaling_factor=1.0)


def text_model(
    config: LatentConfig,
    params: Params,
    autoencoder: TrainedAutoencoder,
    tokenizer_files: dict[str, bytes],
    scaling_factor: float,
    dtype: str = "float32",
) -> StableDiffusion:
    """The parts of a latent run with these parameters. Text encoder and U-Net are in `dtype`."""
    model = config.model
    in_dtype = jax.tree.map(lambda x: x.astype(dtype), params)
    return StableDiffusion(
        tokenizer_files=tokenizer_files,
        text_encoder=model.text_encoder,
        text_params=in_dtype["text_encoder"],
        unet=model.unet,
        unet_params=in_dtype["unet"],
        autoencoder=dataclasses.replace(autoencoder.model.net, scaling_factor=scaling_factor),
        autoencoder_params=autoencoder.params,
        objective=config.objective,
        sampling=config.sampling,
        scheduler=_scheduler(config),
        dtype=dtype,
    )


def _scheduler(config: LatentConfig) -> dict[str, Any]:
    """The scheduler as diffusers' JSON; empty if diffusers lacks the objective."""
    try:
        return latent_scheduler_config(config.objective, config.sampling)
    except ValueError:
        return {}
