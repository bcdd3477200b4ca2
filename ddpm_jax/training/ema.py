"""Moving averages of the parameters: how much the newest weigh, and averages of any length rebuilt after training.

The power-function average and its reconstruction are those of Karras et al. 2024, "Analyzing and Improving the
Training Dynamics of Diffusion Models", section 3 and appendix C. The length of an average is sigma_rel, the standard
deviation of its profile over the parameters of steps 1..t as a share of t. Steps count from t = 1.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.errors import check

MAX_LENGTH = 12**-0.5  # the mean of all steps, gamma = 0
MAX_RESIDUAL = 0.05  # of what an average that is rebuilt may miss, as `solve_weights` measures it
SNAPSHOTS = 64  # in a run that names no cadence: tracks 0.05 and 0.1 then give lengths 0.03 to 0.2 within 0.3%


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
    """The moving averages of the parameters; samples are drawn with that of `decay` unless another is asked for."""

    decay: float = 0.9999
    warmup: bool = True
    """Use min(decay, (1 + step) / (10 + step)), so that early averages forget their start."""
    extra_decays: tuple[float, ...] = ()
    """Further decays, each tracked at the same time."""
    power: tuple[float, ...] = ()
    """Lengths of power-function averages, such as 0.05 0.1, from which other lengths are rebuilt after training."""
    snapshots_every: int | None = None
    """Steps between the snapshots of these that are kept for good; None for a 64th of the run."""

    def __post_init__(self):
        for name, decay in [
            ("decay", self.decay),
            *(("extra_decays", other) for other in self.extra_decays),
        ]:
            check(0 <= decay < 1, f"ema.{name} must be in [0, 1), not {decay}")
        for name, values in (("extra_decays", self.extra_decays), ("power", self.power)):
            check(len(set(values)) == len(values), f"ema.{name} names an average twice: {values}")
        for length in self.power:
            check(
                0 < length <= MAX_LENGTH,
                f"ema.power must be above 0 and at most {MAX_LENGTH:.4f}, not {length}",
            )
        check(
            self.snapshots_every is None or self.snapshots_every >= 1,
            "ema.snapshots_every must be at least 1",
        )

    @property
    def decays(self) -> dict[str, float]:
        """The averages of constant decay by name: "ema", and such as "ema_0.999"."""
        return {"ema": self.decay} | {f"ema_{decay}": decay for decay in self.extra_decays}

    @property
    def power_averages(self) -> dict[str, float]:
        """The lengths of the power-function averages by name, such as "power_0.05"."""
        return {f"power_{length}": length for length in self.power}


def decay_rate(decay: float, warmup: bool, t: Float[Array, ""]) -> Float[Array, ""]:
    """1 - beta(t) of an average of constant decay; with warm-up beta(t) = min(decay, (1 + t) / (10 + t))."""
    rate = jnp.float32(1 - decay)
    return jnp.maximum(rate, 9 / (10 + t)) if warmup else rate


def power_rate(gamma: float, t: Float[Array, ""]) -> Float[Array, ""]:
    """1 - beta(t) of a power-function average, beta(t) = (1 - 1/t)^(gamma + 1) (Eq. 127).

    By expm1 and log1p, because in float32 1 - (1 - 1/t) has a relative error of 5% at t = 10^6.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / t))


def power_gamma(length: float) -> float:
    """The exponent whose profile, tau^gamma over [0, t], has the standard deviation `length` * t.

    Solves sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2) (Eq. 123) as a cubic (Eq. 126). Raises
    ValueError outside (0, 12^(-1/2)].
    """
    if not 0 < length <= MAX_LENGTH:
        raise ValueError(
            f"the length of an average must be above 0 and at most {MAX_LENGTH:.4f}, not {length}"
        )
    inverse = length**-2
    return max(float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()), 0.0)


def profile_inner_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of the product of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], float64.

    Closed form (Eq. 151); the arguments broadcast against each other.
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(x, np.float64) for x in (t_a, gamma_a, t_b, gamma_b))
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_last = np.where(t_a < t_b, gamma_b, gamma_a)
    product = (gamma_a + 1) * (gamma_b + 1) * (first / last) ** gamma_last
    return np.asarray(product / ((gamma_a + gamma_b + 1) * last))


def solve_weights(
    t: np.ndarray, gamma: np.ndarray, t_wanted: int, gamma_wanted: float
) -> tuple[Float[np.ndarray, " n"], float]:
    """The weights of stored averages (t_i, gamma_i) whose sum is nearest to a wanted one, and how far it is from it.

    Least squares between the profiles in float64 (Algorithm 3), here among weights that add up to 1, so that a
    parameter which never moved comes back exactly. The distance is the norm of the profiles' difference over that of
    the wanted profile.
    """
    t = np.asarray(t, np.float64) / t_wanted
    gram, projections = (
        profile_inner_product(t[:, None], gamma[:, None], t, gamma),
        profile_inner_product(t, gamma, 1, gamma_wanted),
    )
    one = np.ones((len(t), 1))
    system = np.block(
        [[gram, one], [one.T, np.zeros((1, 1))]]
    )  # with the multiplier of the constraint
    weights = np.linalg.solve(system, np.append(projections, 1))[:-1]
    norm = profile_inner_product(1, gamma_wanted, 1, gamma_wanted)
    squared = (norm - 2 * weights @ projections + weights @ gram @ weights) / norm
    return weights, float(np.sqrt(max(squared, 0)))


def reachable_lengths(t: np.ndarray, gamma: np.ndarray, t_wanted: int) -> list[float]:
    """The lengths 0.01, 0.02, ... that stored averages (t_i, gamma_i) give within MAX_RESIDUAL."""
    lengths = [i / 100 for i in range(1, int(100 * MAX_LENGTH) + 1)]
    return [
        x for x in lengths if solve_weights(t, gamma, t_wanted, power_gamma(x))[1] <= MAX_RESIDUAL
    ]


def combine(trees: Iterable[Any], weights: Iterable[float]) -> Any:
    """The weighted sum of trees of float32 arrays as NumPy arrays, added up in float64 and one tree at a time."""
    total: Any = None
    for weight, tree in zip(weights, trees, strict=True):
        term = jax.tree.map(lambda x, weight=weight: weight * np.asarray(x, np.float64), tree)
        total = term if total is None else jax.tree.map(np.add, total, term)
    return jax.tree.map(np.float32, total)
