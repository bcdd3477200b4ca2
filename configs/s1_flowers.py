"""S1's DDPM project on the 8,189 Oxford flowers at 32 px, 33,261,827 parameters.

    python train.py --config s1_flowers

Hardware: one GPU, time not measured. Data: TFDS oxford_flowers102, split train+validation+test, resized to 32 px,
downloaded and prepared by itself. Expected: as the s1_mnist recipe; not run here.
"""

import dataclasses

from configs.s1_mnist import config as s1_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(
    s1_mnist,
    model=dataclasses.replace(s1_mnist.model, channels=3),
    data=Tfds(name="oxford_flowers102", split="train+validation+test", resize="squash"),
)
