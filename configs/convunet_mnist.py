"""S1's DDPM project on MNIST: the ConvBlock U-Net of 33,260,417 parameters at 32 px, 1000 epochs.

    python train.py --config convunet_mnist

Hardware: one GPU, time not measured. Data: TFDS mnist, split train, resized to 32 px.
It is downloaded and prepared by itself.
Sampling is S1's own: no clipping of the clean estimate, variance beta, each state clamped to [-1, 1].
Expected: digits; this recipe has not been run here.
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
