"""Run a sampler from noise to images, for an objective and sampling settings."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import CLEAN_DATA, GridRow, make_grid, timesteps_for
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.prediction import Denoiser, Network, make_denoiser
from ddpm_jax.diffusion.schedule import q_sample
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.sampling import Sampling, build_sampler, step_count
from ddpm_jax.generation.scheduler_grids import (
    at_whole_timesteps,
    needs_whole_timesteps,
    noise_scale,
    scheduler_grid,
)
from ddpm_jax.samplers import Sampler


def sampling_grid(objective: Objective, sampling: Sampling) -> GridRow:
    """The grid of these settings. Raise ValueError for steps or timesteps out of range."""
    schedule = objective.noise_schedule
    end = 0 if sampling.end == "sigma_min" else CLEAN_DATA
    if sampling.timesteps is not None:
        t = np.asarray(sampling.timesteps)
        if np.all(t == np.floor(t)):
            t = t.astype(int)
        return make_grid(schedule, t, end)
    steps = objective.timesteps if sampling.steps is None else sampling.steps
    offset = sampling.leading_offset
    if sampling.grid != "plain":
        given_end = None if sampling.end is None else end
        return scheduler_grid(sampling.grid, schedule, steps, sampling.spacing, offset, given_end)
    t = timesteps_for(schedule, steps, sampling.spacing) + offset
    return make_grid(schedule, t, end)


def edited_grid(
    objective: Objective, sampling: Sampling, sampler: Sampler, edit: Edit | None
) -> GridRow:
    """The grid of these settings, changed by the edit if there is one."""
    grid = sampling_grid(objective, sampling)
    return grid if edit is None else edit.grid(grid, sampler)


def walk_length(objective: Objective, sampling: Sampling, edit: Edit | None = None) -> int:
    """The number of steps, after the edit if any. Raise ValueError for settings out of range."""
    if edit is None:
        return step_count(objective, sampling)
    sampler = build_sampler(objective, sampling)
    return len(edited_grid(objective, sampling, sampler, edit).i)


def sampling_denoiser(objective: Objective, network: Network, sampling: Sampling) -> Denoiser:
    """The denoiser of a network, with the clipping and rounding of these settings."""
    # Only the network itself takes whole timesteps. The preconditioning is that of the exact t.
    if needs_whole_timesteps(sampling.grid_kind):
        network = at_whole_timesteps(network)
    network, target = objective.network_and_target(network)
    return make_denoiser(
        objective.noise_schedule,
        network,
        target,
        1.0 if sampling.clip_x0 else None,
        dynamic_threshold=sampling.dynamic_threshold,
        threshold_limit=sampling.threshold_limit,
        keep_eps=sampling.keep_eps,
    )


def walk(
    keys: Key[Array, " b"],
    objective: Objective,
    network: Network,
    shape: tuple[int, int, int],
    sampling: Sampling,
    chunks: int,
    edit: Edit | None = None,
) -> Iterator[Float[Array, "b h w c"]]:
    """Yield xT, then xt after each of `chunks` equal parts of the grid. The last is the sample.

    `shape` is (h, w, c). The arrays of `edit` have a row per key.
    """
    sampler = build_sampler(objective, sampling)
    grid = edited_grid(objective, sampling, sampler, edit)
    denoise = sampling_denoiser(objective, network, sampling)
    xT = samplers.initial_noise(keys, shape)  # (b, h, w, c)
    if edit is not None:
        xT = edit.start(keys, denoise, sampler, grid, xT)
        sampler = edit.sampler(sampler)
    if edit is None or edit.starts_from_noise:
        xT = noise_scale(sampling.grid_kind, sampling.spacing, grid) * xT
    yield xT
    yield from samplers.sample_in_chunks(keys, denoise, sampler, grid, xT, chunks)


def noise_ladder(
    keys: Key[Array, " b"], objective: Objective, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h w c"], Int[Array, " b"]]:
    """Add noise to image i at the i-th of b timesteps spread evenly over 0..T-1.

    Return the noisy images and the timesteps.
    """
    t = jnp.linspace(0, objective.timesteps - 1, len(images), dtype=jnp.float32)  # (b,)
    t = jnp.round(t).astype(jnp.int32)
    eps = samplers.initial_noise(keys, images.shape[1:])
    return q_sample(objective.noise_schedule, images, t, eps), t


def predict_x0(
    objective: Objective, network: Network, xt: Float[Array, "b h w c"], t: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """The network's estimate of clean data, which is not clipped."""
    return sampling_denoiser(objective, network, Sampling(clip_x0=False))(xt, t).x0
