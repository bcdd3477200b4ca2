"""The forward (noising) process and the step grids that walk it back.

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)                    Eq. 4, Ho et al. 2020
    alpha_t = 1 - beta_t,  alpha_bar_t = alpha_0 ... alpha_t,  t = 0..T-1

Tables are built in float64 with NumPy and stored in float32, sqrt(1 - alpha_bar) included: recomputing
1 - alpha_bar in float32 would lose up to 1e-4 of it at t = 0.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

Spacing = Literal["trailing", "leading", "linspace"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The tables of a diffusion of T steps, each (T,) float32; a pytree, so it passes through jit.

    `log_alpha` is log(1 - beta): step grids are rebuilt from it in float64, where beta would have lost alpha near 0.
    """

    beta: Float[Array, " T"]
    log_alpha: Float[Array, " T"]
    alpha_bar: Float[Array, " T"]
    sqrt_alpha_bar: Float[Array, " T"]
    sqrt_one_minus_alpha_bar: Float[Array, " T"]
    log_snr: Float[Array, " T"]

    @property
    def timesteps(self) -> int:
        """T."""
        return self.beta.shape[-1]

    def at(self, t: Num[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at t in [0, T-1]; a float t interpolates linearly in log SNR."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            return self.sqrt_alpha_bar[t], self.sqrt_one_minus_alpha_bar[t]
        log_snr = jnp.interp(t, jnp.arange(self.timesteps, dtype=t.dtype), self.log_snr)
        # Where the end has no signal, jnp.interp gives NaN at T-2: 0 parts of -inf.
        log_snr = jnp.where(t == jnp.floor(t), self.log_snr[t.astype(jnp.int32)], log_snr)
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    def snr(self, t: Num[Array, "..."]) -> Float[Array, "..."]:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) at t."""
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self.at(t)
        return (sqrt_alpha_bar / sqrt_one_minus_alpha_bar) ** 2


class Row(NamedTuple):
    """One step of a walk from noise to data: the tables at `t` and at the next timestep, nearer the data.

    A grid is a Row of arrays (steps,). The next of its last row is clean data, `sqrt_alpha_bar_next = 1`, so no
    sampler needs a branch for the last step. `beta = 1 - alpha_bar / alpha_bar_next` is that of the whole stride.
    """

    i: Int[Array, "*steps"]
    t: Num[Array, "*steps"]
    t_next: Num[Array, "*steps"]
    sqrt_alpha_bar: Float[Array, "*steps"]
    sqrt_one_minus_alpha_bar: Float[Array, "*steps"]
    sqrt_alpha_bar_next: Float[Array, "*steps"]
    sqrt_one_minus_alpha_bar_next: Float[Array, "*steps"]
    beta: Float[Array, "*steps"]


def from_betas(betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
    """The schedule of any betas (T,) in (0, 1]; a warning names one whose end is far from pure noise.

    Raises ValueError for betas outside (0, 1] or a beta of 1 anywhere but at the end.
    """
    beta = np.asarray(betas, np.float64)
    if beta.ndim != 1 or not beta.size or not np.all((beta > 0) & (beta <= 1)) or np.any(beta[:-1] == 1):
        raise ValueError("betas must be one row of numbers in (0, 1], with 1 only at the end (zero terminal SNR)")
    if np.prod(1 - beta) > 0.01:
        warnings.warn(
            f"the schedule never reaches noise: alpha_bar ends at {np.prod(1 - beta):.4f}, "
            "so samples would start from a state that training never showed; raise the betas or T",
            stacklevel=2,
        )
    with np.errstate(divide="ignore"):
        log_alpha = np.log1p(-beta)
    log_alpha_bar = np.cumsum(log_alpha)
    alpha_bar, one_minus = np.exp(log_alpha_bar), -np.expm1(log_alpha_bar)
    with np.errstate(divide="ignore"):
        log_snr = log_alpha_bar - np.log(one_minus)
    tables = beta, log_alpha, alpha_bar, np.sqrt(alpha_bar), np.sqrt(one_minus), log_snr
    return NoiseSchedule(*(jnp.asarray(table, jnp.float32) for table in tables))


def linear(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """betas rising linearly (Ho et al. 2020, section 4)."""
    return np.linspace(beta_start, beta_end, timesteps)


def scaled_linear(timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """betas whose square roots rise linearly (latent diffusion, Rombach et al. 2022)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2


def squaredcos(timesteps: int = 1000, max_beta: float = 0.999) -> np.ndarray:
    """betas of alpha_bar(t) ~ cos^2(pi/2 (t/T + 0.008) / 1.008), at most max_beta (Eq. 17, Nichol & Dhariwal 2021)."""
    u = np.arange(timesteps + 1) / timesteps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def sigmoid(timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """betas along a sigmoid from -6 to 6 (GeoDiff, Xu et al. 2022)."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, timesteps)))


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """betas rescaled so that alpha_bar ends at exactly 0 (Algorithm 1, Lin et al. 2024); needs x0 or v prediction."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    return 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


BETAS: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squaredcos": squaredcos,
    "sigmoid": sigmoid,
}


def q_sample(
    schedule: NoiseSchedule, x0: Float[Array, "b h w c"], t: Num[Array, " b"], eps: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """xt ~ q(x_t | x_0) for eps ~ N(0, I): Eq. 4, Ho et al. 2020. t in [0, T-1], integer or float."""
    sqrt_alpha_bar, sqrt_one_minus_alpha_bar = per_example(schedule.at(t), x0)
    return sqrt_alpha_bar * x0 + sqrt_one_minus_alpha_bar * eps


def q_posterior(
    schedule: NoiseSchedule, x0: Float[Array, "b h w c"], xt: Float[Array, "b h w c"], t: Int[Array, " b"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 1"]]:
    """Mean and variance of q(x_{t-1} | x_t, x_0): Eq. 7, Ho et al. 2020; x_{-1} is clean data."""
    return posterior(Row(*per_example(one_step(schedule, t), x0)), x0, xt)


def posterior(row: Row, x0: Array, xt: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_next | x_t, x_0) for the stride of `row`: Eq. 6-7, Ho et al. 2020.

    x0 and xt are (b, h, w, c); the fields of `row` are scalars, or (b, 1, 1, 1), and so is the variance.
    """
    one_minus_alpha_bar = row.sqrt_one_minus_alpha_bar**2
    one_minus_alpha_bar_next = row.sqrt_one_minus_alpha_bar_next**2
    sqrt_alpha = row.sqrt_alpha_bar / row.sqrt_alpha_bar_next
    mean = row.sqrt_alpha_bar_next * row.beta / one_minus_alpha_bar * x0
    mean = mean + sqrt_alpha * one_minus_alpha_bar_next / one_minus_alpha_bar * xt
    return mean, one_minus_alpha_bar_next / one_minus_alpha_bar * row.beta


def one_step(schedule: NoiseSchedule, t: Int[Array, " b"]) -> Row:
    """The rows that lead from each t to t - 1, and from 0 to clean data."""
    one, zero = jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)
    sqrt_alpha_bar_next = jnp.concatenate([one, schedule.sqrt_alpha_bar])[t]
    sqrt_one_minus_alpha_bar_next = jnp.concatenate([zero, schedule.sqrt_one_minus_alpha_bar])[t]
    here = schedule.at(t)
    return Row(t, t, t - 1, *here, sqrt_alpha_bar_next, sqrt_one_minus_alpha_bar_next, schedule.beta[t])


def per_example(values, images: Float[Array, "b h w c"]):
    """`values` (b,), or a tuple of such, shaped (b, 1, 1, 1) to multiply `images`."""
    return jax.tree.map(lambda value: value.reshape(value.shape + (1,) * (images.ndim - value.ndim)), values)


def spaced(timesteps: int, steps: int, spacing: Spacing = "trailing", offset: int = 0) -> np.ndarray:
    """`steps` distinct timesteps of 0..timesteps-1, from noise to data (Table 2, Lin et al. 2024).

    trailing: starts at T-1. leading: ends at 0 (+ `offset`); for few steps it starts below T-1. linspace: both ends.
    Raises ValueError unless 1 <= steps <= timesteps.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be between 1 and the schedule's T = {timesteps}, not {steps}")
    if spacing == "trailing":
        return np.round(timesteps - np.arange(steps) * (timesteps / steps)).astype(int) - 1
    if spacing == "linspace":
        return np.round(np.linspace(timesteps - 1, 0, steps)).astype(int)
    return np.arange(steps)[::-1] * (timesteps // steps) + offset


def make_grid(schedule: NoiseSchedule, t: Sequence[float] | np.ndarray) -> Row:
    """The grid that walks the timesteps `t` (steps,), strictly falling within [0, T-1], and ends in clean data.

    Built on the host in float64, so it is outside jit and passed in as an argument; float timesteps are placed
    by interpolation in log SNR. Raises ValueError for timesteps that do not fall or lie outside.
    """
    t = np.asarray(t)
    if not (t.size and np.all(np.diff(t) < 0) and t[0] <= schedule.timesteps - 1 and t[-1] >= 0):  # refuses NaN
        raise ValueError(f"timesteps must fall strictly within 0..{schedule.timesteps - 1}, not {t.tolist()}")
    log_alpha_bar = _log_alpha_bar_at(schedule, t)
    log_next = np.append(log_alpha_bar[1:], 0.0)
    tables = [np.exp(0.5 * log_alpha_bar), np.sqrt(-np.expm1(log_alpha_bar))]
    tables += [np.exp(0.5 * log_next), np.sqrt(-np.expm1(log_next)), -np.expm1(log_alpha_bar - log_next)]
    kind = jnp.int32 if np.issubdtype(t.dtype, np.integer) else jnp.float32
    times = [jnp.arange(t.size), jnp.asarray(t, kind), jnp.asarray(np.append(t[1:], -1), kind)]
    return Row(*times, *(jnp.asarray(table, jnp.float32) for table in tables))


def _log_alpha_bar_at(schedule: NoiseSchedule, t: np.ndarray) -> np.ndarray:
    log_alpha_bar = np.cumsum(np.asarray(schedule.log_alpha, np.float64))
    if np.issubdtype(t.dtype, np.integer):
        return log_alpha_bar[t]
    log_snr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    return -np.logaddexp(0.0, -np.interp(t, np.arange(schedule.timesteps), log_snr))
