"""A latent run as Stable Diffusion by parts: to draw from prompts, and to export."""

import dataclasses
from pathlib import Path

import jax

from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion, latent_scheduler_config
from ddpm_jax.runs import directory, saved_steps
from ddpm_jax.runs.latents import (
    check_autoencoder,
    first_folder,
    load_autoencoder,
    tokenizer_files,
)
from ddpm_jax.runs.sources import RunSource


def is_text_run(folder: Path) -> bool:
    """Whether a folder holds a latent run, which draws from prompts."""
    if not (folder / saved_steps.FOLDER).is_dir():
        return False
    try:
        return isinstance(directory.load_config(folder, None), LatentConfig)
    # Whoever opens the run reports that its config cannot be read.
    except ValueError:
        return False


def open_text_model(run: RunSource, params: Params, dtype: str = "float32") -> StableDiffusion:
    """The model of a checkpoint of a latent run, with these parameters of its network.

    Raise ValueError if the run's autoencoder has changed since the checkpoint.
    """
    assert isinstance(run.config, LatentConfig)
    scale = saved_steps.data_at(run.folder, run.step).get("scaling_factor")
    if scale is None:
        raise ValueError(
            f"Checkpoint {run.step} of {run.folder} does not say how its latents are scaled: use "
            "another checkpoint."
        )
    autoencoder, fingerprint = load_autoencoder(run.config, run.folder)
    check_autoencoder(run.folder, run.step, fingerprint)
    return text_model(run.config, run.folder, params, autoencoder, float(scale), dtype)


def text_model(
    config: LatentConfig,
    workdir: Path,
    params: Params,
    autoencoder_params: Params,
    scaling_factor: float,
    dtype: str = "float32",
) -> StableDiffusion:
    """The parts of a latent run with these parameters. Text encoder and U-Net are in `dtype`."""
    model = config.model
    assert isinstance(model, TextUNet)
    autoencoder = dataclasses.replace(config.autoencoder.model.net, scaling_factor=scaling_factor)
    in_dtype = jax.tree.map(lambda x: x.astype(dtype), params)
    return StableDiffusion(
        tokenizer_files=tokenizer_files(first_folder(config, workdir)),
        text_encoder=model.text_encoder,
        text_params=in_dtype["text_encoder"],
        unet=model.unet,
        unet_params=in_dtype["unet"],
        autoencoder=autoencoder,
        autoencoder_params=autoencoder_params,
        objective=config.objective,
        sampling=config.sampling,
        scheduler=latent_scheduler_config(config.objective, config.sampling),
        dtype=dtype,
    )
