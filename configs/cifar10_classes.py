"""CIFAR-10 by class: the cifar10 recipe with 10 labels, a tenth of them hidden for classifier-free guidance.

    python train.py --config cifar10_classes
    python sample.py --ckpt runs/cifar10_classes --label 3,5,7 --guidance-scale 2

Hardware: as the cifar10 recipe. Data: TFDS cifar10, split train, 162 MiB, downloaded and prepared by itself, or
`--data.data-dir DIR`.
Expected: pictures of the class that is asked for; not run here.
"""

import dataclasses

from configs.cifar10 import config as cifar10

config = dataclasses.replace(
    cifar10,
    model=dataclasses.replace(cifar10.model, num_classes=10, label_dropout=0.1),
    sampling=dataclasses.replace(cifar10.sampling, guidance_scale=1.5),
)
