"""Denoising diffusion models in JAX, made of pure functions that can be used on their own.

mathematics  NoiseSchedule, from_betas, q_sample, simple_loss, Prediction, make_denoiser, guide
sampling     Sampler, ddpm, make_grid, sample_keys, initial_noise, sample, to_uint8, save_images
editing      Edit, add_noise, truncate, inpaint, invert, slerp
networks     Model, UNet, ConvUNet, BasicUNet, use_kernels, attention_maps
training     TrainState, init_state, make_train_step, training_keys, model_loss, init_lora
diffusers    Pipeline, ModelSpec, load_pretrained, load_stable_diffusion, text_to_image, load_lora

Importing the package touches no device.
"""

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.diffusion.grid import GridRow, make_grid, spaced, timesteps_for
from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.diffusion.likelihood import VariationalBound, bits_per_dim
from ddpm_jax.diffusion.losses import hybrid_loss, loss_weight, simple_loss, vlb_loss
from ddpm_jax.diffusion.posterior import q_posterior
from ddpm_jax.diffusion.prediction import Prediction, make_denoiser
from ddpm_jax.diffusion.schedule import (
    NoiseSchedule,
    edm_betas,
    flow_betas,
    from_betas,
    linear_betas,
    q_sample,
    scaled_linear_betas,
    sigmoid_betas,
    squaredcos_betas,
    zero_terminal_snr,
)
from ddpm_jax.figures.image_grids import image_grid, save_images
from ddpm_jax.generation.attention_maps import attention_maps
from ddpm_jax.generation.editing import (
    Edit,
    add_noise,
    drop_pure_noise,
    inpaint,
    invert,
    lerp,
    slerp,
    truncate,
)
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.repaint import repaint_grid
from ddpm_jax.generation.walk import noise_ladder
from ddpm_jax.models import Model
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.kernels.switch import use_kernels
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.pipeline import Pipeline, TextToImagePipeline
from ddpm_jax.pretrained.lora_files import add_lora, load_lora, save_lora, with_lora
from ddpm_jax.pretrained.pipeline_folder import Pretrained, load_pretrained, save_pretrained
from ddpm_jax.pretrained.stable_diffusion import (
    StableDiffusion,
    load_stable_diffusion,
    save_stable_diffusion,
)
from ddpm_jax.samplers import Sampler, initial_noise, sample, sample_in_chunks, sample_keys
from ddpm_jax.samplers.ddpm import ddpm
from ddpm_jax.training.lora import Lora, init_lora, lora_loss, merge_lora
from ddpm_jax.training.step import (
    TrainState,
    example_keys,
    init_state,
    make_train_step,
    model_loss,
    training_keys,
)

__all__ = [
    "BasicUNet",
    "ConvUNet",
    "Edit",
    "GridRow",
    "Lora",
    "Model",
    "ModelSpec",
    "NoiseSchedule",
    "Pipeline",
    "Prediction",
    "Pretrained",
    "Sampler",
    "StableDiffusion",
    "TextCondition",
    "TextToImagePipeline",
    "TrainState",
    "UNet",
    "VariationalBound",
    "add_lora",
    "add_noise",
    "attention_maps",
    "bits_per_dim",
    "ddpm",
    "drop_pure_noise",
    "edm_betas",
    "example_keys",
    "flow_betas",
    "from_betas",
    "guide",
    "hybrid_loss",
    "image_grid",
    "init_lora",
    "init_state",
    "initial_noise",
    "inpaint",
    "invert",
    "lerp",
    "linear_betas",
    "load_lora",
    "load_pretrained",
    "load_stable_diffusion",
    "lora_loss",
    "loss_weight",
    "make_denoiser",
    "make_grid",
    "make_train_step",
    "merge_lora",
    "model_loss",
    "noise_ladder",
    "q_posterior",
    "q_sample",
    "repaint_grid",
    "sample",
    "sample_in_chunks",
    "sample_keys",
    "save_images",
    "save_lora",
    "save_pretrained",
    "save_stable_diffusion",
    "scaled_linear_betas",
    "sigmoid_betas",
    "simple_loss",
    "slerp",
    "spaced",
    "squaredcos_betas",
    "timesteps_for",
    "to_uint8",
    "training_keys",
    "truncate",
    "use_kernels",
    "vlb_loss",
    "with_lora",
    "zero_terminal_snr",
]
