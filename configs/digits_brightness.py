"""8x8 handwritten digits by brightness: the digits recipe with a number.

    python train.py --config digits_brightness
    python sample.py --ckpt runs/digits_brightness --condition 65 78 90 --num 60

The number is the mean level of an image, from 0 to 255. A tenth of these numbers
is hidden in training.
Hardware: any.
Time: 2 to 5 minutes on two CPU cores.
Data: the 1,797 digits of scikit-learn, included in its installation.
Expected: after 501 steps, the samples of each of 60, 65, ..., 95 have a mean within 4 levels of it
and a deviation of 2.9 to 4.0, over 16 samples (the data: 77.9 and 8.6). Guidance 2 exaggerates: 47
to 108.
"""

import dataclasses

from ddpm_jax.recipes.digits import config as digits

config = dataclasses.replace(
    digits,
    model=dataclasses.replace(digits.model, vector_size=1, label_dropout=0.1),
    data=dataclasses.replace(digits.data, condition="brightness"),
)
