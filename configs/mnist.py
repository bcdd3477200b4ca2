"""MNIST at 28 px: a U-Net of 1,707,009 parameters, 30 epochs.

    python train.py --config mnist

Squared-cosine schedule, AdamW, batches of 128 images.
Hardware: one GPU, or a CPU.
Time: about 3 s per step on two CPU cores, 469 steps per epoch, so 12 hours.
Data: TFDS mnist, split train; downloaded on first use, or `--data.data-dir DIR`.
Expected: on 9,000 of MNIST's 10,000 test images instead of the 60,000 training images (71 steps per
epoch), mean losses of 0.209, 0.090, 0.071, 0.065, 0.059, 0.057, 0.056, 0.053, 0.052 and 0.051 in
epochs 1 to 10. The samples then were digits, some of them on a grey background, for which
docs/results.md has the reason. With `--objective.target v` none is: docs/results.md has that run,
which gave the package's network `mnist`. Not verified by a full run.
"""

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=UNet(
        image_size=28,
        channels=1,
        widths=(32, 64, 64),
        attention=(False, True, True),
        head_dim=8,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0.0,
        symmetric_padding=True,
        init_scheme="torch",
    ),
    data=Tfds(name="mnist"),
    objective=Objective(schedule="squaredcos"),
    training=Training(batch_size=128, epochs=30),
    optimizer=Optimizer(name="adamw", learning_rate=4e-4),
    ema=Ema(decay=0.999),
    checkpoint=Checkpoint(every_epochs=1),
    log=Log(samples_every_epochs=5, samples=36, sample_steps=50),
)
