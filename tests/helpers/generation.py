"""Recipes of a small U-Net and of a net that compiles at once, and an edit of each kind."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models import Model
from ddpm_jax.models.unet import UNet

UNET = UNet(
    image_size=4,
    channels=1,
    widths=(8,),
    attention=(False,),
    layers_per_level=1,
    groups=4,
    middle="none",
)


class BlurModule(nn.Module):
    """tanh of a blurred image, moved by the class."""

    classes: int

    @nn.compact
    def __call__(self, xt, t, labels, keys):
        weight = self.param("weight", nn.initializers.ones, ())
        out = jnp.tanh(weight * (xt + jnp.roll(xt, 1, 2)))
        if self.classes:
            shift = self.param("shift", nn.initializers.zeros, (self.classes,))
            out = out + shift[labels][:, None, None, None]
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(Model):
    """The smallest net with labels."""

    image_size: int = 4
    channels: int = 1

    def module(self) -> nn.Module:
        return BlurModule(self.label_count)


BLUR = Blur()
CLASSES = Blur(num_classes=3)
HIDING = Blur(num_classes=3, label_dropout=0.1)


def recipe_of(model, **sampling) -> Recipe:
    """A recipe of 7 steps on a schedule of 20 timesteps."""
    return Recipe(
        model=model,
        objective=Objective(schedule="squaredcos", timesteps=20),
        sampling=Sampling(**{"steps": 7} | sampling),
    )


def blur_params(model=BLUR, weight=0.6):
    """Parameters with which each class has images of its own."""
    params = {"weight": jnp.float32(weight)}
    if model.label_count:
        shift = 0.3 * np.arange(1, model.label_count + 1) * (-1) ** np.arange(model.label_count)
        params["shift"] = jnp.asarray(shift, jnp.float32)
    return params


def random_params(model):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    fresh = model.init(jax.random.key(0))
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), fresh)


IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 4, 4, 1)), jnp.float32)
MASKS = jnp.asarray(np.broadcast_to(np.arange(4)[None, None, :, None] < 2, (1, 4, 4, 1)))
SHARES = jnp.asarray(np.linspace(0, 1, 11), jnp.float32)
EDITS = {
    "strength": Edit(images=IMAGES, strength=0.6),
    "mask": Edit(images=IMAGES, masks=MASKS, repeats=2, jump=3),
    "images": Edit(images=IMAGES[:1], others=IMAGES[1:2], shares=SHARES, strength=0.6),
    "noises": Edit(shares=SHARES),
    "inversion": Edit(images=IMAGES, inverted=True),
}
