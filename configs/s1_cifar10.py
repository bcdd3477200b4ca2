"""S1's DDPM project on CIFAR-10: the s1_mnist recipe in colour, 33,261,827 parameters.

    python train.py --config s1_cifar10

Hardware: one GPU, time not measured. Data: TFDS cifar10, split train, resized to 32 px,
downloaded and prepared by itself. Expected: as the s1_mnist recipe; not run here.
"""

import dataclasses

from configs.s1_mnist import config as s1_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(
    s1_mnist,
    model=dataclasses.replace(s1_mnist.model, channels=3),
    data=Tfds(name="cifar10", resize="squash"),
)
