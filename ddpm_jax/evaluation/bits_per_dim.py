"""Measure the variational bound of a network on images, in bits per dimension."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data import Batch
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.likelihood import VariationalBound, bound_terms, prior_term
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.errors import check, check_rows
from ddpm_jax.generation.generate import chunk_count, guided_network
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models import Params
from ddpm_jax.samplers import sample_keys

PROGRESS_PARTS = 20
"""The timesteps are split into at least this many equal parts, for the progress bar."""


def evaluate(
    config: Config,
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
    objective = config.objective
    num_images = len(batch["image"])
    schedule = objective.noise_schedule
    num_parts = chunk_count(schedule.timesteps, PROGRESS_PARTS)
    parts = jnp.split(jnp.arange(schedule.timesteps, dtype=jnp.int32), num_parts)
    variance = variance or objective.variance
    check_rows(num_images, **batch)
    labels = batch.get("label", np.zeros(num_images, np.int32))
    batch_size = parallel.padded_batch_size(batch_size, num_images)
    bounds = []
    for start in range(0, num_images, batch_size):
        rows = np.arange(start, start + batch_size)
        keys = sample_keys(seed, jnp.asarray(rows))
        # The last batch is padded with the first images; their bounds are dropped at the end.
        images = batch["image"][rows % num_images]  # (b, h, w, c)
        keys, x0, label = parallel.shard((keys, images, labels[rows % num_images]))
        network = guided_network(config.model, params, label)
        denoise = sampling_denoiser(objective, network, Sampling())
        terms = []
        for t in parts:
            terms.append(bound_terms(keys, schedule, denoise, x0, t, variance))  # (b, n)
            # JAX returns before it has computed. Block, so that progress bars count finished work.
            jax.block_until_ready(terms)
            on_part()
        bounds.append(VariationalBound(jnp.concatenate(terms, 1), prior_term(schedule, x0)))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[:num_images], *bounds)


def summary(bound: VariationalBound) -> dict:
    """Averages of a bound over its images as plain numbers, in bits per dimension.

    Raise ValueError if the bound of an image is not finite.
    """
    total = np.asarray(bound.total)
    check(bool(np.isfinite(total).all()), "The bound is not finite: look for NaN in the weights.")
    return {
        "bits_per_dim": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))),
        "prior": float(np.mean(bound.prior)),
        "steps": float(np.mean(np.sum(bound.terms[:, 1:], 1))),
        "decoder": float(np.mean(bound.decoder)),
        "per_timestep": np.mean(bound.terms, 0).tolist(),
    }
