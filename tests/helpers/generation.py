"""Two networks that compile fast, their recipes and parameters, and edits."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Model
from ddpm_jax.models.layers import conv
from ddpm_jax.models.norms import GroupNorm


class BlurModule(nn.Module):
    """tanh of a blurred image, shifted by the class."""

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
    """A small network with labels."""

    image_size: ImageSize = 4
    channels: int = 1

    def module(self) -> nn.Module:
        return BlurModule(self.label_count)


class ConvolutionsModule(nn.Module):
    """Two convolutions and a group norm, whose rounding may depend on the batch size."""

    @nn.compact
    def __call__(self, xt, t, labels, keys):
        hidden = GroupNorm(4, 1e-5, name="norm")(conv(xt, 8, 3, "first", init="torch"))
        return conv(jnp.tanh(hidden), 1, 3, "last", init="torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolutions(Model):
    """A network of the library's layers."""

    image_size: ImageSize = 4
    channels: int = 1

    def module(self) -> nn.Module:
        return ConvolutionsModule()


CONVOLUTIONS = Convolutions()
BLUR = Blur()
CLASSES = Blur(num_classes=3)
HIDING = Blur(num_classes=3, label_dropout=0.1)


def spec_of(model, **sampling) -> ModelSpec:
    """A recipe with 7 steps on a schedule of 20 timesteps."""
    return ModelSpec(
        model=model,
        objective=Objective(schedule="squaredcos", timesteps=20),
        sampling=Sampling(**{"steps": 7} | sampling),
    )


def blur_params(model=BLUR, weight=0.6):
    """Parameters with which the images of the classes differ."""
    params = {"weight": jnp.float32(weight)}
    if model.label_count:
        params["shift"] = jnp.asarray([0.3, -0.2, 0.1, 0.05][: model.label_count], jnp.float32)
    return params


def random_params(model):
    """Random parameters, none of them zero."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, model.shapes())


IMAGES = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 4, 4, 1)), jnp.float32)
MASKS = jnp.asarray(np.broadcast_to(np.arange(4)[None, None, :, None] < 2, (1, 4, 4, 1)))
FRACTIONS = jnp.asarray(np.linspace(0, 1, 11), jnp.float32)
MASK = Edit(images=IMAGES, masks=MASKS, repeats=2, jump_length=3)
NOISES = Edit(fractions=FRACTIONS)
