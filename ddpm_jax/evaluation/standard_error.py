"""The standard error of a mean."""

import numpy as np
from jaxtyping import Float

from ddpm_jax.errors import check


def standard_error(values: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
    """The standard error of the mean over n values. Raise ValueError for fewer than two."""
    check(len(values) >= 2, f"An error needs at least 2 images, not {len(values)}: take more.")
    return np.asarray(np.std(values, axis=0, ddof=1) / np.sqrt(len(values)))
