"""CIFAR-10 from 8 to 32 px: super-resolution on a CPU.

    python train.py --config cifar10_upscale
    python sample.py --ckpt runs/cifar10_upscale --condition small.png

The network sees a copy of each image, reduced 4 times and enlarged again (SR3, Saharia et al.
2021), with noise whose level it is given (cascades, Ho et al. 2022). `--condition` takes images of
8 px.
Hardware: any.
Time: not measured at this length.
Data: TFDS cifar10, split train, 162 MiB; downloaded on first use, or `--data.data-dir DIR`.
Expected: sharper images that follow the small ones. After 501 steps of 16 images (8 minutes of one
CPU core) their detail is mottled, with a PSNR of 18.5 dB to the test images, below the 21.7 dB of
the enlarged copies (docs/conditions.md). Not verified by a full run.
"""

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=UNet(
        image_size=32,
        channels=3,
        widths=(24, 32, 32),
        attention=(False, False, False),
        layers_per_level=1,
        groups=8,
        condition_channels=3,
        condition_noise=0.3,
    ),
    data=Tfds(name="cifar10", flip=True, condition="reduced", reduction=4),
    objective=Objective(schedule="squaredcos", target="v"),
    training=Training(batch_size=32, steps=20_000),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=50, clip_norm=1.0),
    ema=Ema(decay=0.999, warmup=True),
    sampling=Sampling(sampler="dpmpp_2m", steps=20),
    checkpoint=Checkpoint(every=500),
    log=Log(every=20, samples_every=1000, samples=48, sample_steps=None),
)
