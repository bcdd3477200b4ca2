"""CIFAR-10 as in the DDPM paper (Ho et al. 2020), 800,000 steps.

    python train.py --config cifar10

Appendix B of the paper: a U-Net of 35,746,307 parameters, batches of 128 images.
Hardware: a TPU v3-8 in the paper. On a recent GPU add `--training.dtype bfloat16`.
Time: 10.6 hours at 21 steps per second in the paper.
Data: TFDS cifar10, split train, 162 MiB; downloaded on first use, or `--data.data-dir DIR`.
Expected: the paper reports an FID of 3.17 with 1,000 ancestral steps. Not verified by a full run.
"""

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=UNet(image_size=32, channels=3, dropout=0.1),
    data=Tfds(name="cifar10", flip=True),
    objective=Objective(schedule="linear"),
    training=Training(batch_size=128, steps=800_000),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
    ema=Ema(decay=0.9999),
    sampling=Sampling(options={"variance": "fixed_large"}),
    checkpoint=Checkpoint(every=5000, keep_every=100_000),
    log=Log(every=100, samples_every=5000),
)
