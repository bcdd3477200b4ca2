"""CIFAR-10 by class: the cifar10 recipe with labels and guidance.

    python train.py --config cifar10_classes
    python sample.py --ckpt runs/cifar10_classes --label 3,5,7 --guidance-scale 2

10 classes. A tenth of the labels are hidden in training, for classifier-free guidance.
Hardware, time: as in the cifar10 recipe.
Data: TFDS cifar10, split train, 162 MiB; downloaded on first use, or `--data.data-dir DIR`.
Expected: images of the requested class. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.recipes.cifar10 import config as cifar10

config = dataclasses.replace(
    cifar10,
    model=dataclasses.replace(cifar10.model, num_classes=10, label_dropout=0.1),
    sampling=dataclasses.replace(cifar10.sampling, guidance_scale=1.5),
)
