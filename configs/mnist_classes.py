"""MNIST at 28 px by class: the mnist recipe with labels and guidance.

    python train.py --config mnist_classes
    python sample.py --ckpt runs/mnist_classes --label 3,5,7 --guidance-scale 2

10 classes. A tenth of the labels are hidden in training, for classifier-free guidance.
Hardware, time: as in the mnist recipe.
Data: TFDS mnist, split train; downloaded on first use, or `--data.data-dir DIR`.
Expected: about the losses of the mnist recipe, and digits of the requested class. Not verified by a
full run.
"""

import dataclasses

from ddpm_jax.recipes.mnist import config as mnist

config = dataclasses.replace(
    mnist,
    model=dataclasses.replace(mnist.model, num_classes=10, label_dropout=0.1),
    sampling=dataclasses.replace(mnist.sampling, guidance_scale=2.0),
)
