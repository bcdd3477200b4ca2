"""1,000 butterflies at 32 px: the short run, 30 epochs with batches of 64.

    python train.py --config butterflies
    python train.py --config butterflies --data.path butterflies.parquet

The U-Net of diffusers' butterflies tutorial, 18,536,323 parameters, 16 steps per epoch.
Hardware: one GPU, or a CPU.
Time: minutes on a GPU, about 45 minutes on two CPU cores (from the time of a step).
Data: huggan/smithsonian_butterflies_subset from the Hugging Face hub (needs the extra
`ddpm_jax[huggingface]`), or a local parquet file, or a folder of parquet files.
Expected: the tutorial prints mean losses of 0.15309, 0.11697, 0.09691, 0.08497, 0.08003 and 0.07250
at epochs 5, 10, 15, 20, 25 and 30.
"""

import dataclasses

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.data.huggingface import HuggingFace
from ddpm_jax.recipes.mnist import config as mnist

config = dataclasses.replace(
    mnist,
    model=dataclasses.replace(
        mnist.model,
        image_size=32,
        channels=3,
        widths=(64, 128, 128, 256),
        attention=(False, False, True, True),
    ),
    data=HuggingFace(path="huggan/smithsonian_butterflies_subset", flip=True, resize="squash"),
    training=Training(batch_size=64, epochs=30),
    checkpoint=Checkpoint(every=80),
    log=Log(every=1, samples_every_epochs=5, samples=8),
)
