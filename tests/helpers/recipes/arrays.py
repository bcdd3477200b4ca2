"""The recipe `small` on arrays of floats, of two channels, which are no squares."""

import dataclasses

from helpers.saved_runs import RECIPE

from ddpm_jax.data.arrays import Arrays

config = dataclasses.replace(
    RECIPE,
    model=dataclasses.replace(RECIPE.model, image_size=(8, 12), channels=2),
    data=Arrays(path="x.npy", scaling="deviation"),
    sampling=dataclasses.replace(RECIPE.sampling, clip_x0=False),
)
