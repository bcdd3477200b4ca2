"""Fashion-MNIST at 28 px: the mnist recipe on clothes.

    python train.py --config fashion_mnist

Hardware and time: as the mnist recipe. Data: TFDS fashion_mnist, split train, downloaded and prepared by itself.
Expected: losses somewhat above MNIST's, since the pictures have texture; not run here.
"""

import dataclasses

from configs.mnist import config as mnist
from ddpm_jax.data.tfds import Tfds

config = dataclasses.replace(mnist, data=Tfds(name="fashion_mnist"))
