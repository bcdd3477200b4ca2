"""The ConvBlock U-Net on MNIST at 32 px, 1,000 epochs.

    python train.py --config convunet_mnist

33,260,417 parameters. Sampling adds noise of variance beta and clamps x itself to [-1, 1] after
each step; the x0 estimate is not clipped.
Hardware: one GPU.
Time: not measured.
Data: TFDS mnist, split train, resized to 32 px; downloaded on first use, or `--data.data-dir DIR`.
Expected: digits. Not verified by a full run.
"""

from ddpm_jax.config import Checkpoint, Config, Log, Training
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.training.optimizer import Optimizer

config = Config(
    model=ConvUNet(image_size=32, channels=1),
    data=Tfds(name="mnist", resize="squash"),
    objective=Objective(schedule="linear", timesteps=1000, beta_start=1e-4, beta_end=0.02),
    training=Training(batch_size=64, epochs=1000),
    optimizer=Optimizer(learning_rate=1e-4, decay="epoch_cosine", floor=1e-6),
    sampling=Sampling(options={"variance": "fixed_large", "clip_sample": 1.0}, clip_x0=False),
    checkpoint=Checkpoint(every_epochs=1),
    log=Log(samples_every_epochs=10, samples=100),
)
