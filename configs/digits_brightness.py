"""8x8 handwritten digits by their brightness: the digits recipe, conditioned on a number.

    python train.py --config digits_brightness
    python sample.py --ckpt runs/digits_brightness --condition 65 78 90 --num 60

The number is the mean level of an image, from 0 to 255. A tenth of them are hidden in training.
Hardware: any.
Time: 2 to 5 minutes on two CPU cores.
Data: the 1,797 digits of scikit-learn, included in its installation.
"""

import dataclasses

from ddpm_jax.recipes.digits import config as digits

config = dataclasses.replace(
    digits,
    model=dataclasses.replace(digits.model, vector_size=1, label_dropout=0.1),
    data=dataclasses.replace(digits.data, condition="brightness"),
)
