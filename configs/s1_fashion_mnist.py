"""S1's DDPM project on Fashion-MNIST: the s1_mnist recipe on clothes.

    python train.py --config s1_fashion_mnist

Hardware: one GPU, time not measured. Data: TFDS fashion_mnist, split train, resized to 32 px,
downloaded and prepared by itself. Expected: as the s1_mnist recipe; not run here.
"""

import dataclasses

from configs.s1_mnist import config as s1_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(s1_mnist, data=Tfds(name="fashion_mnist", resize="squash"))
