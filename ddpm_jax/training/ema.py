"""Moving averages of the parameters, and averages of other lengths rebuilt after training.

The power-function average and its reconstruction are from Karras et al. 2024, "Analyzing and
Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. The length of an
average is sigma_rel: the standard deviation of its profile over the parameters of steps 1..t, as
a fraction of t. Steps count from t = 1.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.errors import check, check_at_least, check_settings

# The longest average: the plain mean of all steps, gamma = 0.
MAX_LENGTH = 12**-0.5

# An average is not rebuilt if the residual of `solve_weights` is larger.
MAX_RESIDUAL = 0.05

# Snapshots in a run whose config sets no cadence. With this many, power averages of 0.05 and 0.1
# give lengths 0.03 to 0.2 with a residual below 0.003 (tests/training/test_ema.py).
SNAPSHOTS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """The moving averages of the parameters. Samples use the one of `decay` by default."""

    decay: float = 0.9999
    """Decay of the default average."""
    warmup: bool = True
    """Use min(decay, (1 + step) / (10 + step)), so that early averages forget their start."""
    extra_decays: tuple[float, ...] = ()
    """Further decays. Each has an average of its own."""
    power: tuple[float, ...] = ()
    """Lengths of power-function averages, such as 0.05 0.1, to rebuild other lengths from."""
    snapshots_every: int | None = None
    """Steps between permanent snapshots of the power averages; None for a 64th of the run."""

    def __post_init__(self):
        check_settings(self, "ema.")
        decays = [("decay", self.decay), *(("extra_decays", decay) for decay in self.extra_decays)]
        for name, decay in decays:
            check(0 <= decay < 1, f"ema.{name} must be in [0, 1), not {decay}.")
        for name, values in (("extra_decays", self.extra_decays), ("power", self.power)):
            check(
                len(set(values)) == len(values),
                f"ema.{name} names an average twice, {values}: leave one out.",
            )
        for length in self.power:
            valid_range = f"above 0 and at most {MAX_LENGTH:.4f}"
            check(
                0 < length <= MAX_LENGTH,
                f"ema.power must be {valid_range}, not {length}.",
            )
        check_at_least(1, **{"ema.snapshots_every": self.snapshots_every})

    @property
    def decays(self) -> dict[str, float]:
        """The constant decays by the names of their averages, "ema" and for example "ema_0.999"."""
        return {"ema": self.decay} | {f"ema_{decay}": decay for decay in self.extra_decays}

    @property
    def power_averages(self) -> dict[str, float]:
        """The lengths of the power-function averages by name, for example "power_0.05"."""
        return {f"power_{length}": length for length in self.power}


def decay_rate(decay: float, warmup: bool, t: Float[Array, ""]) -> Float[Array, ""]:
    """1 - beta(t) of an average of constant decay.

    With warm-up, beta(t) = min(decay, (1 + t) / (10 + t)).
    """
    rate = jnp.float32(1 - decay)
    return jnp.maximum(rate, 9 / (10 + t)) if warmup else rate


def power_rate(gamma: float, t: Float[Array, ""]) -> Float[Array, ""]:
    """1 - beta(t) of a power-function average, beta(t) = (1 - 1/t)^(gamma + 1) (Eq. 127)."""
    # In float32, 1 - (1 - 1/t) has a relative error of 1% at t = 10^6.
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / t))


def power_gamma(length: float) -> float:
    """The exponent gamma whose profile, tau^gamma over [0, t], has standard deviation `length` * t.

    Solve sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2) (Eq. 123) as a cubic
    (Eq. 126). Raise ValueError for a length outside (0, 12^(-1/2)].
    """
    if not 0 < length <= MAX_LENGTH:
        valid_range = f"above 0 and at most {MAX_LENGTH:.4f}"
        raise ValueError(f"The length of an average must be {valid_range}, not {length}.")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(float(roots.real.max()), 0.0)


def profile_inner_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of the product of two profiles, in closed form (Eq. 151), in float64.

    A profile is p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. The arguments broadcast.
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(x, np.float64) for x in (t_a, gamma_a, t_b, gamma_b))
    t_min = np.minimum(t_a, t_b)
    t_max = np.maximum(t_a, t_b)
    gamma_of_t_max = np.where(t_a < t_b, gamma_b, gamma_a)
    product = (gamma_a + 1) * (gamma_b + 1) * (t_min / t_max) ** gamma_of_t_max
    return np.asarray(product / ((gamma_a + gamma_b + 1) * t_max))


def solve_weights(
    t: np.ndarray, gamma: np.ndarray, target_t: int, target_gamma: float
) -> tuple[Float[np.ndarray, " n"], float]:
    """The weights of stored averages (t_i, gamma_i) that best rebuild a target, and the residual.

    Least squares between the profiles in float64 (Algorithm 3). Unlike there, the weights add up
    to 1, so that a parameter which never moved is rebuilt exactly. The residual is the norm of the
    difference of the profiles, divided by the norm of the target profile.
    """
    t = np.asarray(t, np.float64) / target_t
    gram = profile_inner_product(t[:, None], gamma[:, None], t, gamma)  # (n, n)
    projections = profile_inner_product(t, gamma, 1, target_gamma)  # (n,)
    ones = np.ones((len(t), 1))
    # The last row and column belong to the Lagrange multiplier of the constraint.
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])  # (n + 1, n + 1)
    weights = np.linalg.solve(system, np.append(projections, 1))[:-1]
    target_norm = profile_inner_product(1, target_gamma, 1, target_gamma)
    difference = target_norm - 2 * weights @ projections + weights @ gram @ weights
    squared_residual = difference / target_norm
    return weights, float(np.sqrt(max(squared_residual, 0)))


def reachable_lengths(t: np.ndarray, gamma: np.ndarray, target_t: int) -> list[float]:
    """The lengths 0.01, 0.02, ... that stored averages (t_i, gamma_i) rebuild to MAX_RESIDUAL."""

    def residual(length):
        return solve_weights(t, gamma, target_t, power_gamma(length))[1]

    lengths = [i / 100 for i in range(1, int(100 * MAX_LENGTH) + 1)]
    return [length for length in lengths if residual(length) <= MAX_RESIDUAL]


def combine(trees: Iterable[Any], weights: Iterable[float]) -> Any:
    """Add up weighted trees of float32 arrays, as NumPy arrays.

    Sum in float64 and read one tree at a time. Raise ValueError unless there are as many
    weights as trees.
    """
    total: Any = None
    for weight, tree in zip(weights, trees, strict=True):
        term = jax.tree.map(lambda x, weight=weight: weight * np.asarray(x, np.float64), tree)
        total = term if total is None else jax.tree.map(np.add, total, term)
    return jax.tree.map(np.float32, total)
