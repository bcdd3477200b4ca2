"""Measure the variational bound of a network on images, in bits per dimension."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import Batch
from ddpm_jax.diffusion.likelihood import VariationalBound, bound_terms, prior_term
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.evaluation.standard_error import standard_error
from ddpm_jax.generation.generate import chunk_count
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models import Params

PROGRESS_PARTS = 20
"""The timesteps are split into at least this many equal parts, for the progress bar."""


def evaluate(
    spec: ModelSpec,
    params: Params,
    batch: Batch,
    batch_size: int,
    seed: int,
    variance: Variance | None = None,
    on_part: Callable[[], object] = lambda: None,
) -> VariationalBound:
    """The variational bound of each image of `batch`, with x0 clipped.

    The noise of image i depends only on (seed, i), not on the batch size. `variance` is the
    variance of the reverse step, by default the objective's. `on_part()` is called after each part
    of the timesteps of each batch.
    """
    objective = spec.objective
    schedule = objective.noise_schedule
    num_parts = chunk_count(schedule.timesteps, PROGRESS_PARTS)
    parts = jnp.split(jnp.arange(schedule.timesteps, dtype=jnp.int32), num_parts)
    variance = variance or objective.variance
    bounds = []
    for keys, x0, network in network_batches(spec, params, batch, batch_size, seed):
        denoise = sampling_denoiser(objective, network, Sampling())
        terms = []
        for t in parts:
            terms.append(bound_terms(keys, schedule, denoise, x0, t, variance))  # (b, n)
            # JAX returns before it has computed. Block, so that progress bars count finished work.
            jax.block_until_ready(terms)
            on_part()
        bounds.append(VariationalBound(jnp.concatenate(terms, 1), prior_term(schedule, x0)))
    num_images = len(batch["image"])
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[:num_images], *bounds)


def summary(bound: VariationalBound) -> dict[str, Any]:
    """Averages of a bound over its images, its standard error and its parts, in bits per dimension.

    Raise ValueError if the bound of an image is not finite, and for fewer than two images.
    """
    total = np.asarray(bound.total)
    check(bool(np.isfinite(total).all()), "The bound is not finite: look for NaN in the weights.")
    return {
        "bits_per_dim": float(total.mean()),
        "bits_per_dim_error": float(standard_error(total)),
        "bound": {
            "prior": float(np.mean(bound.prior)),
            "steps": float(np.mean(np.sum(bound.terms[:, 1:], 1))),
            "decoder": float(np.mean(bound.decoder)),
            "per_timestep": np.mean(bound.terms, 0).tolist(),
        },
    }
