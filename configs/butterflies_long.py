"""1,000 butterflies at 32 px: the long run, 500 epochs of batch 512.

    python train.py --config butterflies_long

The butterflies recipe with batches of 512 images, 2 steps per epoch.
Hardware: one GPU.
Time: the tutorial reports 45 minutes on an RTX 3090 in PyTorch.
Data: as in the butterflies recipe.
Expected: a lower loss than in the short run. Not verified by a full run.
"""

import dataclasses

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.recipes.butterflies import config as butterflies

config = dataclasses.replace(
    butterflies,
    training=Training(batch_size=512, epochs=500),
    checkpoint=Checkpoint(every=100),
    log=Log(every=1, samples_every_epochs=50, samples=8),
)
