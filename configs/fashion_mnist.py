"""Fashion-MNIST at 28 px: the mnist recipe on images of clothes.

    python train.py --config fashion_mnist

Hardware, time: as in the mnist recipe.
Data: TFDS fashion_mnist, split train; downloaded on first use, or `--data.data-dir DIR`.
Expected: somewhat higher losses than on MNIST, because clothes have texture. Not verified by a full
run.
"""

import dataclasses

from ddpm_jax.data.tfds import Tfds
from ddpm_jax.recipes.mnist import config as mnist

config = dataclasses.replace(mnist, data=Tfds(name="fashion_mnist"))
