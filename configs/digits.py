"""8x8 handwritten digits, no download: a U-Net of 651,041 parameters.

    python train.py --config digits
    python sample.py --ckpt runs/digits --num 256 --out runs/digits/samples.npz

Hardware: any.
Time: 2 to 5 minutes on two CPU cores.
Data: the 1,797 digits of scikit-learn, included in its installation.
Expected: `python -m ddpm_jax.evaluate --ckpt runs/digits --num 1797` reports a Frechet distance of
about 0.045; `python benchmarks/digits.py runs/digits/samples.npz`, of 256 samples, at most 0.20.
"""

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=UNet(
        image_size=8,
        channels=1,
        widths=(32, 64),
        attention=(False, False),
        layers_per_level=1,
        groups=8,
    ),
    data=Digits(),
    objective=Objective(schedule="squaredcos"),
    training=Training(batch_size=128, steps=1000),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, clip_norm=1.0),
    ema=Ema(decay=0.995),
    sampling=Sampling(steps=100),
    checkpoint=Checkpoint(every=500),
    log=Log(every=10, samples_every=500),
)
