"""A small net's recipe and parameters, and an edit of each kind."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet

MODEL = UNet(image_size=4, channels=1, widths=(8,), attention=(False,), layers_per_level=1, groups=4)
CONFIG = Config(
    model=MODEL,
    data=Digits(),
    training=Training(steps=1),
    objective=Objective(schedule="squaredcos", timesteps=20),
    sampling=Sampling(steps=7),
)


def random_params(model):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    fresh = model.init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), fresh)


IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 4, 4, 1)), jnp.float32)
MASKS = jnp.broadcast_to(jnp.arange(4)[None, None, :, None] < 2, (1, 4, 4, 1))
EDITS = {
    "strength": Edit(images=IMAGES, strength=0.6),
    "mask": Edit(images=IMAGES, masks=MASKS, repeats=2, jump=3),
    "pictures": Edit(images=IMAGES[:1], others=IMAGES[1:2], shares=jnp.linspace(0, 1, 11), strength=0.6),
    "noises": Edit(shares=jnp.linspace(0, 1, 11)),
    "inversion": Edit(images=IMAGES, inverted=True),
}
