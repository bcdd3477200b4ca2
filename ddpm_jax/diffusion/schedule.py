"""The forward (noising) process.

q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)             Eq. 4, Ho et al. 2020
alpha_t = 1 - beta_t,  alpha_bar_t = alpha_0 ... alpha_t,  t = 0..T-1

Tables are built in float64 with NumPy and stored in float32. sqrt(1 - alpha_bar) is one of them:
recomputing 1 - alpha_bar in float32 has a relative error of 2e-4 at t = 0 of the linear schedule.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import check_floats, check_shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a diffusion of T steps, each (T,) float32. A pytree, so it passes through jit.

    `log_alpha` is log(1 - beta). Grids are built from it in float64, because a float32 beta near 1
    has lost the digits of alpha.
    """

    beta: Float[Array, " T"]
    log_alpha: Float[Array, " T"]
    alpha_bar: Float[Array, " T"]
    sqrt_alpha_bar: Float[Array, " T"]
    sqrt_one_minus_alpha_bar: Float[Array, " T"]
    log_snr: Float[Array, " T"]

    @property
    def timesteps(self) -> int:
        """The number of timesteps, T."""
        return self.beta.shape[-1]

    @partial(jax.jit, inline=True)
    def signal_and_noise(
        self, t: Num[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at t in [0, T-1].

        A float t interpolates linearly in log SNR.
        """
        if jnp.issubdtype(t.dtype, jnp.integer):
            return table_at(self.sqrt_alpha_bar, t), table_at(self.sqrt_one_minus_alpha_bar, t)
        below = jnp.floor(t)
        fraction = t - below
        low = table_at(self.log_snr, below.astype(jnp.int32))
        high = table_at(self.log_snr, below.astype(jnp.int32) + 1)
        slope = high - low
        # With zero terminal SNR the slope after T-2 is infinite, and 0 * -inf would be NaN at T-2.
        log_snr = low + fraction * jnp.where((fraction == 0) & ~jnp.isfinite(slope), 0, slope)
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    @partial(jax.jit, inline=True)
    def timestep_at(self, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The float t in [0, T-1] of a log SNR: the inverse of `signal_and_noise`."""
        # T-1 may be pure noise, whose log SNR of -infinity would give NaN.
        is_last = log_snr <= self.log_snr[-1]
        log_snr = jnp.where(is_last, self.log_snr[0], log_snr)
        # The default method of searchsorted is a loop, which cannot carry a sharded array.
        above = jnp.searchsorted(-self.log_snr, -log_snr, side="right", method="compare_all")
        above = jnp.clip(above.astype(jnp.int32), 1, self.timesteps - 1)
        start = table_at(self.log_snr, above - 1)
        width = start - table_at(self.log_snr, above)
        fraction = (start - log_snr) / jnp.where(width > 0, width, 1)
        t = (above - 1).astype(log_snr.dtype) + fraction
        return jnp.where(is_last, self.timesteps - 1, jnp.clip(t, 0, self.timesteps - 1))

    @partial(jax.jit, inline=True)
    def snr(self, t: Num[Array, "..."]) -> Float[Array, "..."]:
        """The signal-to-noise ratio alpha_bar / (1 - alpha_bar) at t."""
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self.signal_and_noise(t)
        return (sqrt_alpha_bar / sqrt_one_minus_alpha_bar) ** 2


def table_at(table: Float[Array, " T"], t: Int[Array, "..."]) -> Float[Array, "..."]:
    """The values of a table at each t, sharded like t."""
    return table.at[t].get(out_sharding=jax.typeof(t).sharding)


def from_betas(betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """The schedule of any betas (T,) in (0, 1].

    Warn if alpha_bar ends above 0.01, far from pure noise. Raise ValueError for betas outside
    (0, 1], and if before the end sqrt(alpha_bar) is below the smallest normal number of float32.
    """
    beta = np.asarray(betas, np.float64)
    in_range = np.all((beta > 0) & (beta <= 1))
    if beta.ndim != 1 or not beta.size or not in_range or np.any(beta[:-1] == 1):
        raise ValueError(
            "The betas must be a sequence of numbers in (0, 1], with 1 only at the end "
            "(zero terminal SNR)."
        )
    if np.prod(1 - beta) > 0.01:
        warnings.warn(
            f"The schedule never reaches noise: alpha_bar ends at {np.prod(1 - beta):.4f}, "
            "so sampling would start from noise that training never showed. Raise the betas or T.",
            stacklevel=2,
        )
    with np.errstate(divide="ignore"):
        log_alpha = np.log1p(-beta)
    log_alpha_bar = np.cumsum(log_alpha)
    alpha_bar = np.exp(log_alpha_bar)
    one_minus_alpha_bar = -np.expm1(log_alpha_bar)
    without_signal = np.flatnonzero(np.sqrt(alpha_bar[:-1]) < np.finfo(np.float32).tiny)
    if without_signal.size:
        raise ValueError(
            f"The schedule leaves no signal from t = {without_signal[0]} on (sqrt(alpha_bar) is "
            "below float32's smallest number): lower the betas or T."
        )
    with np.errstate(divide="ignore"):
        log_snr = log_alpha_bar - np.log(one_minus_alpha_bar)
    return NoiseSchedule(
        beta=jnp.asarray(beta, jnp.float32),
        log_alpha=jnp.asarray(log_alpha, jnp.float32),
        alpha_bar=jnp.asarray(alpha_bar, jnp.float32),
        sqrt_alpha_bar=jnp.asarray(np.sqrt(alpha_bar), jnp.float32),
        sqrt_one_minus_alpha_bar=jnp.asarray(np.sqrt(one_minus_alpha_bar), jnp.float32),
        log_snr=jnp.asarray(log_snr, jnp.float32),
    )


def linear_betas(
    timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Betas that rise linearly (section 4, Ho et al. 2020)."""
    return np.linspace(beta_start, beta_end, timesteps)


def scaled_linear_betas(
    timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> np.ndarray:
    """Betas whose square roots rise linearly (latent diffusion, Rombach et al. 2022)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2


def squaredcos_betas(timesteps: int = 1000, max_beta: float = 0.999) -> np.ndarray:
    """Betas of the squared cosine schedule, at most max_beta (Eq. 17, Nichol & Dhariwal 2021).

    alpha_bar(t) ~ cos^2(pi/2 (t/T + 0.008) / 1.008)
    """
    u = np.arange(timesteps + 1) / timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def sigmoid_betas(
    timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Betas along a sigmoid from -6 to 6 (GeoDiff, Xu et al. 2022)."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, timesteps)))


def flow_betas(timesteps: int = 1000) -> np.ndarray:
    """Betas of rectified flow at s = 1/T, 2/T, ..., 1, sigma = s / (1 - s) (Liu et al. 2023).

    xt is its straight path (1 - s) x0 + s eps, divided by sqrt((1 - s)^2 + s^2).
    The schedule ends in pure noise.
    """
    s = np.arange(1, timesteps + 1) / timesteps
    return betas_from_alpha_bar((1 - s) ** 2 / ((1 - s) ** 2 + s**2))


def edm_betas(
    timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """Betas whose log sigma rises linearly in t, from sigma_min at t = 0 to sigma_max at T-1.

    A float t therefore represents any sigma in between exactly. The default ends are from Table 1,
    Karras et al. 2022. Their x = x0 + sigma eps is sqrt(1 + sigma^2) xt.
    """
    sigma = np.geomspace(sigma_min, sigma_max, timesteps)
    return betas_from_alpha_bar(1 / (1 + sigma**2))


def betas_from_alpha_bar(alpha_bar: np.ndarray) -> np.ndarray:
    """The betas (T,) whose cumulative products of 1 - beta are `alpha_bar`."""
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled so that alpha_bar ends at exactly 0 (Algorithm 1, Lin et al. 2024).

    The target cannot be eps on such a schedule, because x0 does not follow from eps at T-1.
    """
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return betas_from_alpha_bar(root**2)


BETAS: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "squaredcos": squaredcos_betas,
    "sigmoid": sigmoid_betas,
    "flow": flow_betas,
    "edm": edm_betas,
}


@partial(jax.jit, inline=True)
def q_sample(
    schedule: NoiseSchedule,
    x0: Float[Array, "b h w c"],
    t: Num[Array, " b"],
    eps: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """xt ~ q(x_t | x_0) for eps ~ N(0, I) (Eq. 4, Ho et al. 2020).

    t in [0, T-1] is integer or float. Raise ValueError unless there is one t per image, and eps has
    the shape of x0, and for images of integers, which are levels of 8 bits.
    """
    check_floats(Images=x0)
    check_shape(x0.shape[:1], t=t)
    check_shape(x0.shape, eps=eps)
    sqrt_alpha_bar, sqrt_one_minus_alpha_bar = per_example(schedule.signal_and_noise(t), x0)
    return sqrt_alpha_bar * x0 + sqrt_one_minus_alpha_bar * eps


def per_example(values, images: Float[Array, "b h w c"]):
    """`values` (b,), or a tuple of them, reshaped to (b, 1, 1, 1) to multiply `images`."""

    def expand(value):
        return value.reshape(value.shape + (1,) * (images.ndim - value.ndim))

    return jax.tree.map(expand, values)
