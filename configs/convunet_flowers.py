"""S1's DDPM project on the 8,189 Oxford flowers at 32 px, 33,261,827 parameters.

    python train.py --config convunet_flowers

Hardware: one GPU, time not measured. Data: TFDS oxford_flowers102, split train+validation+test, resized to 32 px,
downloaded and prepared by itself. Expected: as the convunet_mnist recipe; not run here.
"""

import dataclasses

from configs.convunet_mnist import config as convunet_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(
    convunet_mnist,
    model=dataclasses.replace(convunet_mnist.model, channels=3),
    data=Tfds(name="oxford_flowers102", split="train+validation+test", resize="squash"),
)
