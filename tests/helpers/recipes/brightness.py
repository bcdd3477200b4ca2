"""The recipe `small` with a U-Net, conditioned on the brightness of each digit."""

import dataclasses

from helpers.nets import SMALLEST
from helpers.saved_runs import RECIPE

from ddpm_jax.data.digits import Digits

config = dataclasses.replace(
    RECIPE,
    model=dataclasses.replace(SMALLEST, image_size=8, vector_size=1, label_dropout=0.2),
    data=Digits(condition="brightness"),
)
