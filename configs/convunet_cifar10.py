"""The ConvBlock U-Net on CIFAR-10 at 32 px, 1,000 epochs.

    python train.py --config convunet_cifar10

The convunet_mnist recipe in colour, 33,261,827 parameters.
Hardware: one GPU.
Time: not measured.
Data: TFDS cifar10, split train, 162 MiB; downloaded on first use, or `--data.data-dir DIR`.
Expected: small colour images like those of CIFAR-10. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.data.tfds import Tfds
from ddpm_jax.recipes.convunet_mnist import config as convunet_mnist

config = dataclasses.replace(
    convunet_mnist,
    model=dataclasses.replace(convunet_mnist.model, channels=3),
    data=Tfds(name="cifar10", resize="squash"),
)
