"""S1's DDPM project on CIFAR-10: the convunet_mnist recipe in colour, 33,261,827 parameters.

    python train.py --config convunet_cifar10

Hardware: one GPU, time not measured. Data: TFDS cifar10, split train, resized to 32 px,
downloaded and prepared by itself. Expected: as the convunet_mnist recipe; not run here.
"""

import dataclasses

from configs.convunet_mnist import config as convunet_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(
    convunet_mnist,
    model=dataclasses.replace(convunet_mnist.model, channels=3),
    data=Tfds(name="cifar10", resize="squash"),
)
