"""CIFAR-10 by class on a CPU: a U-Net of 3,795,811 parameters.

    python train.py --config cifar10_small
    python sample.py --ckpt runs/cifar10_small --label 3,5,7 --guidance-scale 2

Target v, squared-cosine schedule. A tenth of the labels are hidden in training.
Hardware: any.
Time: 0.35 to 1.1 s per step on two cores of an AMD EPYC, by what else runs there, so 35 to 110
minutes.
Data: TFDS cifar10, split train, 162 MiB; downloaded on first use, or `--data.data-dir DIR`.
Expected: the colours and shapes of CIFAR-10. With guidance 2 some ships, cars and horses can be
recognised, and most other images cannot: 6,000 steps of 32 images pass the data four times, and
papers pass it thousands of times. docs/results.md shows what 40,000 steps give.
The equivalent in diffusers is a UNet2DModel of these widths with `num_class_embeds=11` (the last
for no class), a DDPMScheduler with `squaredcos_cap_v2` and `v_prediction`, and AdamW with weight
decay 0.01.
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
        widths=(32, 64, 96, 128),
        attention=(False, False, True, True),
        layers_per_level=1,
        head_dim=32,
        num_classes=10,
        label_dropout=0.1,
    ),
    data=Tfds(name="cifar10", flip=True),
    objective=Objective(schedule="squaredcos", target="v"),
    training=Training(batch_size=32, steps=6_000),
    optimizer=Optimizer(
        name="adamw", learning_rate=1e-3, decay="cosine", warmup_steps=200, clip_norm=1.0
    ),
    ema=Ema(decay=0.999),
    sampling=Sampling(sampler="dpmpp_2m", steps=20, guidance_scale=1.5),
    checkpoint=Checkpoint(every=500),
    log=Log(every=50, samples_every=1000, samples=40, sample_steps=None),
)
