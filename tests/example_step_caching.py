"""Nets, walks and edits in which steps are cached."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from example_generation import random_params

from ddpm_jax import samplers
from ddpm_jax.diffusion import Diffusion, Sampling
from ddpm_jax.editing import Edit
from ddpm_jax.grids import make_grid, spaced
from ddpm_jax.models.unet import UNet
from ddpm_jax.recipe import Recipe
from ddpm_jax.samplers import initial_noise, sample_keys

PLAIN = UNet(image_size=8, channels=1, widths=(8, 12), attention=(True, False), groups=4)
SMALL = dataclasses.replace(PLAIN, layers_per_level=1)
NETS = {
    "plain": PLAIN,
    "resnet": dataclasses.replace(
        SMALL, down_kinds=("resnet", "skip"), up_kinds=("resnet",) * 2, modulation="scale_shift", learned_variance=True
    ),
    "one level": dataclasses.replace(SMALL, widths=(8,), attention=(False,), up_attention=(True,), middle="plain"),
    "fourier": dataclasses.replace(SMALL, time_embedding="fourier", center_input=True),
}
CLASSES = dataclasses.replace(PLAIN, attention=(False, False), layers_per_level=1, num_classes=3, label_dropout=0.1)
OBJECTIVE = Diffusion(schedule="squaredcos", timesteps=20, target="x0")
RECIPE = Recipe(model=CLASSES, objective=OBJECTIVE, sampling=Sampling(sampler="ddim", steps=8))
PARAMS = random_params(CLASSES)
PARAMS["conv_out"]["kernel"] *= 0.5  # greys, not black and white
SCHEDULE = OBJECTIVE.noise_schedule()
GRID = make_grid(SCHEDULE, spaced(20, 8))
KEYS = sample_keys(0, jnp.arange(3))
XT = initial_noise(KEYS, CLASSES.image_shape)
LABELS = jnp.arange(3) % 2
GUIDED = Sampling(guidance_scale=3.0, guidance_interval=(5.0, 20.0), guidance_rescale=0.5)
ONCE = [name for name in samplers.names() if samplers.make(name).evaluations == 1 and not samplers.make(name).extra]
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)), jnp.float32)
MASKS = jnp.broadcast_to(jnp.arange(8)[None, None, :, None] < 4, (1, 8, 8, 1))
REMADE = Edit(images=IMAGES, masks=MASKS, repeats=2, jump=3, strength=0.8)
