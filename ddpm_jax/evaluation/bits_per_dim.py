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
from ddpm_jax.errors import check
from ddpm_jax.generation.generate import chunk_count, guided_network
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models import Params
from ddpm_jax.samplers import sample_keys

PROGRESS_PARTS = 20


def evaluate(
    config: Config,
    params: Params,
    batch: Batch,
    batch_size: int,
    seed: int,
    variance: Variance | None = None,
    on_part: Callable[[], object] = lambda: None,
) -> VariationalBound:
    """The bound of each image, x0 clipped: image i's noise depends on (seed, i) alone, whatever the batch size."""
    objective, num = config.objective, len(batch["image"])
    schedule = objective.noise_schedule
    parts = jnp.split(
        jnp.arange(schedule.timesteps), chunk_count(schedule.timesteps, PROGRESS_PARTS)
    )
    labels = batch.get("label", np.zeros(num, np.int32))
    batch_size = parallel.padded_batch_size(batch_size, num)
    bounds = []
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size)
        keys, images = sample_keys(seed, jnp.asarray(rows)), batch["image"][rows % num]
        keys, x0, label = parallel.shard((keys, images, labels[rows % num]))
        denoise = sampling_denoiser(
            objective, guided_network(config.model, params, label), Sampling()
        )
        terms = []
        for t in parts:
            terms.append(
                bound_terms(keys, schedule, denoise, x0, t, variance or objective.variance)
            )
            jax.block_until_ready(
                terms
            )  # so that a progress bar shows what is done, not what is asked for
            on_part()
        bounds.append(VariationalBound(jnp.concatenate(terms, 1), prior_term(schedule, x0)))
    return jax.tree.map(
        lambda *figures: jnp.concatenate(figures)[:num], *bounds
    )  # the last batch is filled up


def summary(bound: VariationalBound) -> dict:
    """The figures of a bound over many images, as plain numbers; raises ValueError where one is not finite."""
    total = np.asarray(bound.total)
    check(bool(np.isfinite(total).all()), "the bound is not finite: look for NaN in the weights")
    return {
        "bits_per_dim": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))),
        "prior": float(np.mean(bound.prior)),
        "steps": float(np.mean(np.sum(bound.terms[:, 1:], 1))),
        "decoder": float(np.mean(bound.decoder)),
        "per_timestep": np.mean(bound.terms, 0).tolist(),
    }
