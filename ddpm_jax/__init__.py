"""Denoising diffusion models as pure functions in JAX: import any part alone. Importing this touches no device."""

from ddpm_jax.diffusion.grid import Row, make_grid, spaced, times_of
from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.diffusion.likelihood import Bound, bits_per_dim
from ddpm_jax.diffusion.losses import hybrid_loss, loss_weight, simple_loss, vlb_loss
from ddpm_jax.diffusion.posterior import q_posterior
from ddpm_jax.diffusion.prediction import Prediction, make_denoiser
from ddpm_jax.diffusion.schedule import (
    NoiseSchedule,
    flow,
    from_betas,
    linear,
    q_sample,
    scaled_linear,
    sigmoid,
    squaredcos,
    zero_terminal_snr,
)
from ddpm_jax.generation.editing import Edit, inpaint, invert, last_part, lerp, noised, resampled, slerp, with_signal
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.models import Model
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.pipeline import Pipeline
from ddpm_jax.pretrained.pipeline_folder import Pretrained, load_pretrained, save_pretrained
from ddpm_jax.samplers import Sampler, initial_noise, sample, sample_in_chunks, sample_keys
from ddpm_jax.samplers.ddpm import ddpm
from ddpm_jax.training.step import TrainState, example_keys, init_state, make_train_step, model_loss

__all__ = [
    "BasicUNet",
    "Bound",
    "ConvUNet",
    "Edit",
    "Model",
    "NoiseSchedule",
    "Pipeline",
    "Prediction",
    "Pretrained",
    "Recipe",
    "Row",
    "Sampler",
    "TrainState",
    "UNet",
    "bits_per_dim",
    "ddpm",
    "example_keys",
    "flow",
    "from_betas",
    "guide",
    "hybrid_loss",
    "init_state",
    "initial_noise",
    "inpaint",
    "invert",
    "last_part",
    "lerp",
    "linear",
    "load_pretrained",
    "loss_weight",
    "make_denoiser",
    "make_grid",
    "make_train_step",
    "model_loss",
    "noised",
    "q_posterior",
    "q_sample",
    "resampled",
    "sample",
    "sample_in_chunks",
    "sample_keys",
    "save_pretrained",
    "scaled_linear",
    "sigmoid",
    "simple_loss",
    "slerp",
    "spaced",
    "squaredcos",
    "times_of",
    "vlb_loss",
    "with_signal",
    "zero_terminal_snr",
]
