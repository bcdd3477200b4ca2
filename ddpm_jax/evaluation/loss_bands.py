"""The training loss of a network by band of t: its mean in eight bands."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddpm_jax import draws
from ddpm_jax.data import Batch
from ddpm_jax.errors import check
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.evaluation.standard_error import standard_error
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params
from ddpm_jax.training.loss_bands import BANDS, band_edges


def band_losses(
    spec: ModelSpec,
    params: Params,
    batch: Batch,
    batch_size: int,
    seed: int,
    on_part: Callable[[], object] = lambda: None,
) -> Float[np.ndarray, "n bands"]:
    """The loss of each image of `batch` at one random t in each band of t.

    The bands are those of `training.loss_bands`. t and the noise of image i depend only on
    (seed, i). There is no dropout. `on_part()` is called after each band of each batch. Raise
    ValueError if a loss is not finite.
    """
    timesteps = spec.objective.timesteps
    edges = band_edges(timesteps)
    check(
        timesteps >= BANDS,
        f"A loss by band of t needs T of at least {BANDS}, not {timesteps}: choose other measures.",
    )
    losses = []
    for keys, x0, network in network_batches(spec, params, batch, batch_size, seed):
        by_band = []
        for band in range(BANDS):
            ends = np.float32(edges[band : band + 2])
            band_keys = draws.fold_in(keys, band)
            by_band.append(np.asarray(_losses(spec.objective, band_keys, network, x0, ends)))
            on_part()
        losses.append(np.stack(by_band, 1))
    result = np.concatenate(losses)[: len(batch["image"])]
    check(bool(np.isfinite(result).all()), "The loss is not finite: look for NaN in the weights.")
    return result


@partial(jax.jit, static_argnums=0)
def _losses(objective, keys, network, x0, ends):
    u = draws.uniform(draws.fold_in(keys, 0))  # (b,)
    start, stop = ends
    t = jnp.floor(start + u * (stop - start))
    t = jnp.minimum(t, stop - 1).astype(jnp.int32)
    return objective.loss(draws.fold_in(keys, 1), network, x0, t)


def summary(losses: Float[np.ndarray, "n bands"], timesteps: int) -> dict[str, Any]:
    """The mean over all t, with t uniform, and in each band, with standard errors.

    Raise ValueError for fewer than two images.
    """
    widths = np.diff(band_edges(timesteps))
    per_image = np.average(losses, axis=1, weights=widths)
    return {
        "loss": float(per_image.mean()),
        "loss_error": float(standard_error(per_image)),
        "loss_bands": losses.mean(0).tolist(),
        "loss_bands_error": standard_error(losses).tolist(),
    }
