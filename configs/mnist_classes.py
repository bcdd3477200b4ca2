"""MNIST at 28 px by class: the mnist recipe with 10 labels, a tenth of them hidden for classifier-free guidance.

    python train.py --config mnist_classes
    python sample.py --ckpt runs/mnist_classes --label 3,5,7 --guidance-scale 2

Hardware: as the mnist recipe. Data: TFDS mnist, split train; downloaded and prepared by itself, or
`--data.data-dir DIR`.
Expected: losses about those of the mnist recipe, digits of the class that is asked for; not run here.
"""

import dataclasses

from configs.mnist import config as mnist

config = dataclasses.replace(
    mnist,
    model=dataclasses.replace(mnist.model, num_classes=10, label_dropout=0.1),
    sampling=dataclasses.replace(mnist.sampling, guidance_scale=2.0),
)
