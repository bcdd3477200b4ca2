"""1,000 Smithsonian butterflies at 32 px: S2's long run, batch 512, 500 epochs of 2 steps.

    python train.py --config butterflies_long

Hardware: one GPU; S2 took 45 minutes on an RTX 3090. Data: as the butterflies recipe.
Expected: a lower loss than the short run's; not run here.
"""

import dataclasses

from configs.butterflies import config as butterflies
from ddpm_jax.config import Checkpoint, Log, Training

config = dataclasses.replace(
    butterflies,
    training=Training(batch_size=512, epochs=500),
    checkpoint=Checkpoint(every_epochs=50),
    log=Log(every=1, samples_every_epochs=50, samples=8),
)
