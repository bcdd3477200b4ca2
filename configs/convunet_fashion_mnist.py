"""S1's DDPM project on Fashion-MNIST: the convunet_mnist recipe on clothes.

    python train.py --config convunet_fashion_mnist

Hardware: one GPU, time not measured. Data: TFDS fashion_mnist, split train, resized to 32 px,
downloaded and prepared by itself. Expected: as the convunet_mnist recipe; not run here.
"""

import dataclasses

from configs.convunet_mnist import config as convunet_mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(convunet_mnist, data=Tfds(name="fashion_mnist", resize="squash"))
