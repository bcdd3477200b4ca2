"""The recipe `small` with a U-Net and one average, conditioned on the brightness of each digit."""

import dataclasses

from helpers.nets import SMALLEST
from helpers.saved_runs import RECIPE

from ddpm_jax.data.digits import Digits
from ddpm_jax.training.ema import Ema

config = dataclasses.replace(
    RECIPE,
    training=dataclasses.replace(RECIPE.training, accumulation=1),
    ema=Ema(decay=0.9),
    model=dataclasses.replace(SMALLEST, image_size=8, vector_size=1, label_dropout=0.2),
    data=Digits(condition="brightness"),
)
