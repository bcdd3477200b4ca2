"""The ConvBlock U-Net on Fashion-MNIST at 32 px, 1,000 epochs.

    python train.py --config convunet_fashion_mnist

The convunet_mnist recipe on images of clothes, 33,260,417 parameters.
Hardware: one GPU.
Time: not measured.
Data: TFDS fashion_mnist, split train, resized to 32 px; downloaded on first use, or
`--data.data-dir DIR`.
Expected: images of clothes. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.data.tfds import Tfds
from ddpm_jax.recipes.convunet_mnist import config as convunet_mnist

config = dataclasses.replace(convunet_mnist, data=Tfds(name="fashion_mnist", resize="squash"))
