"""Draw latents: from noise, from an image, or inside a mask. Pure functions over grid rows.

strength    start from q(x_t | x0) of an image                SDEdit, Meng et al. 2022
inpainting  set known latents to q(x_next | x0) at each step  SDE, Song et al. 2021

Each yields the first latents, then the latents after each of `chunks` equal parts of the grid. As
in diffusers, one eps, given by the caller, serves the start and the known latents of every step.
"""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Key

from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.errors import check
from ddpm_jax.generation.editing import at_end_of, last_rows
from ddpm_jax.samplers import Sampler, sample_in_chunks


def text_to_image(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    eps: Float[Array, "b h w c"],
    *,
    initial_std: float | Float[Array, ""] = 1.0,
    chunks: int = 1,
) -> Iterator[Float[Array, "b h w c"]]:
    """Draw from initial_std * eps. The prompt is part of `denoise`; its guidance too."""
    start = initial_std * eps
    yield start
    yield from sample_in_chunks(keys, denoise, sampler, grid, start, chunks)


def image_to_image(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    latents: Float[Array, "b h w c"],
    eps: Float[Array, "b h w c"],
    *,
    chunks: int = 1,
) -> Iterator[Float[Array, "b h w c"]]:
    """As `text_to_image`, from the latents of images with eps added at the grid's first level."""
    start = noised(grid, latents, eps)
    yield start
    yield from sample_in_chunks(keys, denoise, sampler, grid, start, chunks)


def inpaint(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    latents: Float[Array, "b h w c"],
    masks: Bool[Array, "b h w 1"],
    eps: Float[Array, "b h w c"],
    *,
    start: Float[Array, "b h w c"] | None = None,
    chunks: int = 1,
) -> Iterator[Float[Array, "b h w c"]]:
    """As `image_to_image`, but keep the latents where `masks` is False.

    `start` replaces the noisy latents at the start, such as noise alone.
    """
    start = noised(grid, latents, eps) if start is None else start
    yield start
    sampler = keep_known(sampler, latents, masks, eps)
    yield from sample_in_chunks(keys, denoise, sampler, grid, start, chunks)


def rows_for_strength(grid: GridRow, strength: float) -> GridRow:
    """The last min(int(steps * strength), steps) rows, as diffusers counts them.

    Raise ValueError for a strength outside (0, 1], and if no row is left.
    """
    check(0 < strength <= 1, f"strength must be above 0 and at most 1, not {strength}.")
    steps = len(grid.i)
    n = min(int(steps * strength), steps)
    check(
        n > 0,
        f"Strength {strength} leaves none of {steps} steps: raise strength or take more steps.",
    )
    return last_rows(grid, n)


def noised(
    grid: GridRow, latents: Float[Array, "b h w c"], eps: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps at the grid's first level (Eq. 4, DDPM)."""
    first = grid.row(0)
    return first.sqrt_alpha_bar * latents + first.sqrt_one_minus_alpha_bar * eps


def keep_known(
    sampler: Sampler,
    latents: Float[Array, "b h w c"],
    masks: Bool[Array, "b h w 1"],
    eps: Float[Array, "b h w c"],
) -> Sampler:
    """The sampler that redraws latents where `masks` is True and sets the others at each step.

    x_next = mask x_next + (1 - mask) (sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next) eps)
    After the last step they are x0, even if the grid ends at a noise level above 0.
    """
    return dataclasses.replace(sampler, step=Partial(_keep_known, sampler, latents, masks, eps))


def _keep_known(sampler, latents, masks, eps, keys, denoise, xt, row, state):
    x_next, state = sampler.step(keys, denoise, xt, row, state)
    return jnp.where(masks, x_next, at_end_of(row, latents, eps)), state
