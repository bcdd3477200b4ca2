"""The mean loss in eight bands of t, which shows at which noise levels a loss is high.

Band i holds the timesteps from floor(i T / 8) to below floor((i + 1) T / 8), so band 0 is nearest
to the data.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

BANDS = 8


def band_edges(timesteps: int) -> Int[np.ndarray, " 9"]:
    """The first t of each band, and T."""
    return np.arange(BANDS + 1) * timesteps // BANDS


def sum_by_band(
    t: Num[Array, " b"],
    losses: Float[Array, " b"],
    weight: Float[Array, "*b"],
    timesteps: int,
) -> Float[Array, "2 8"]:
    """Sum weight * loss (row 0) and the weights (row 1) in each band. Their ratio is the mean loss.

    The weights undo the probabilities with which importance sampling draws t. Losses that are not
    finite are left out.
    """
    edges = jnp.asarray(band_edges(timesteps), t.dtype)
    band = jnp.sum(t[:, None] >= edges[None, 1:-1], 1)  # (b,)
    counted = (band[:, None] == jnp.arange(BANDS)[None]) & jnp.isfinite(losses)[:, None]  # (b, 8)
    weights = jnp.where(counted, weight.reshape(-1, 1), 0.0)  # (b, 8)
    finite = jnp.where(jnp.isfinite(losses), losses, 0.0)
    return jnp.stack([jnp.sum(weights * finite[:, None], 0), jnp.sum(weights, 0)])


def mean_by_band(sums: Float[np.ndarray, "steps 2 8"]) -> Float[np.ndarray, " 8"]:
    """The mean loss in each band over several steps; NaN for a band without an example."""
    total, weight = np.sum(sums, 0, dtype=np.float64)
    return np.divide(total, weight, out=np.full(BANDS, np.nan), where=weight > 0)
