"""8,189 Oxford flowers at 128 px: 10 epochs of batch 16, in float16.

    python train.py --config flowers128

The settings of diffusers' training tutorial: 113,673,219 parameters, 5,120 steps.
Hardware: one GPU with 16 GB. On a CPU add `--training.dtype float32`.
Time: not measured.
Data: TFDS oxford_flowers102, all three splits, 329 MiB; downloaded on first use, or
`--data.data-dir DIR`.
Expected: flowers. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.recipes.mnist import config as mnist
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=dataclasses.replace(
        mnist.model,
        image_size=128,
        channels=3,
        widths=(128, 128, 256, 256, 512, 512),
        attention=(False, False, False, False, True, False),
    ),
    data=Tfds(name="oxford_flowers102", split="train+validation+test", resize="squash"),
    objective=Objective(schedule="linear"),
    training=Training(batch_size=16, epochs=10, dtype="float16"),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-4, decay="cosine", warmup_steps=500, clip_norm=1.0
    ),
    checkpoint=Checkpoint(every_epochs=1),
    log=Log(samples_every_epochs=2, samples=16, sample_steps=None),
)
