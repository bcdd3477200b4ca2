"""The normal numbers that latents are drawn from: by our keys, or those of PyTorch's generators."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax import draws
from ddpm_jax.errors import check_choice
from ddpm_jax.generation.torch_noise import torch_normal
from ddpm_jax.samplers import initial_noise

NoiseKind = Literal["jax", "torch-cpu", "torch-cuda"]
DRAWS = ("image", "initial", "masked")


class Noise(NamedTuple):
    """Standard normal numbers of the shape of the latents."""

    initial: Float[Array, "b h w c"]
    """eps of the first latents."""
    image: Float[Array, "b h w c"]
    """Draws the latents of the images to start from."""
    masked: Float[Array, "b h w c"]
    """Draws the latents of the masked images."""


def seed_bits(kind: str) -> int:
    """The number of bits of the largest seed: PyTorch's seeds have 64."""
    return 32 if kind == "jax" else 64


def check_noise_kind(kind: str) -> None:
    """Raise ValueError for an unknown kind of noise."""
    check_choice(get_args(NoiseKind), noise=kind)


def key_noise(keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Noise:
    """Noise of shape (h, w, c) from each sample's own key."""
    return Noise(
        initial=initial_noise(keys, shape),
        image=initial_noise(draws.fold_in_name(keys, "image"), shape),
        masked=initial_noise(draws.fold_in_name(keys, "masked"), shape),
    )


def torch_seed_noise(
    kind: str, seeds: Sequence[int], shape: tuple[int, int, int], encodes_image: bool
) -> Noise:
    """Noise of shape (h, w, c) as diffusers draws it with one PyTorch generator per image.

    diffusers draws the latents of an image first, if it encodes one, then eps, then the latents of
    a masked image.
    """
    drawn = [_torch_draws(kind, seed, shape, encodes_image) for seed in seeds]
    return Noise(*(jnp.asarray(np.stack(rows)) for rows in zip(*drawn, strict=True)))


def _torch_draws(kind, seed, shape, encodes_image):
    """The arrays (h, w, c) of `Noise` for one seed."""
    height, width, channels = shape
    first = 0 if encodes_image else 1
    # PyTorch draws NCHW.
    drawn = torch_normal(kind, seed, [(channels, height, width)] * (3 - first))
    by_name = dict(zip(DRAWS[first:], drawn, strict=True))
    unused = np.zeros((channels, height, width), np.float32)
    return [by_name.get(name, unused).transpose(1, 2, 0) for name in Noise._fields]
