"""The ConvBlock U-Net on 8,189 Oxford flowers at 32 px, 1,000 epochs.

    python train.py --config convunet_flowers

The convunet_mnist recipe in colour, 33,261,827 parameters.
Hardware: one GPU.
Time: not measured.
Data: TFDS oxford_flowers102, all three splits, 329 MiB, resized to 32 px; downloaded on first use,
or `--data.data-dir DIR`.
Expected: flowers. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.data.tfds import Tfds
from ddpm_jax.recipes.convunet_mnist import config as convunet_mnist

config = dataclasses.replace(
    convunet_mnist,
    model=dataclasses.replace(convunet_mnist.model, channels=3),
    data=Tfds(name="oxford_flowers102", split="train+validation+test", resize="squash"),
)
