"""S4's corruption toy on MNIST: BasicUNet (309,057 parameters) undoes uniform noise of any amount, 3 epochs.

    python train.py --config corruption

Hardware: any; two CPU cores take some minutes. Data: TFDS mnist, split train, downloaded and prepared by itself.
Expected: with only 9,000 of the images mean losses of 0.0448, 0.0259 and 0.0252; predictions are clean up to half
noise, and samples of 5 mixing steps are blurred strokes.
"""

from ddpm_jax.config import Checkpoint, Config, Ema, Log, Optimizer, Training
from ddpm_jax.corruption import Corruption
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.models.basic_unet import BasicUNet

config = Config(
    model=BasicUNet(image_size=28, channels=1),
    data=Tfds(name="mnist"),
    objective=Corruption(),
    training=Training(batch_size=128, epochs=3),
    optimizer=Optimizer(learning_rate=1e-3),
    ema=Ema(decay=0.99),
    checkpoint=Checkpoint(every_epochs=1),
    log=Log(samples_every_epochs=1),
)
