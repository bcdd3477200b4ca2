"""The recipe `small` with one average, on arrays of two channels, which are no squares."""

import dataclasses

from helpers.saved_runs import RECIPE

from ddpm_jax.data.arrays import Arrays
from ddpm_jax.training.ema import Ema

config = dataclasses.replace(
    RECIPE,
    training=dataclasses.replace(RECIPE.training, accumulation=1),
    ema=Ema(decay=0.9),
    model=dataclasses.replace(RECIPE.model, image_size=(8, 12), channels=2),
    data=Arrays(path="x.npy", scaling="deviation"),
    sampling=dataclasses.replace(RECIPE.sampling, clip_x0=False),
)
