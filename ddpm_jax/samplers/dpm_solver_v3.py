"""DPM-Solver-v3: Zheng, Lu, Chen & Zhu 2023, with coefficients from statistics of the network.

With lambda = log SNR / 2 and y = x / sqrt(alpha_bar), the probability-flow ODE is

    y' = -l y - f,   f = (1 - l) y - x0                                                Eq. 4 and 6

for any l(lambda), so a step from lambda_s to lambda_t approximates an integral of f alone:

    y_t = e^(L_s - L_t) y_s - integral of e^(L - L_t) f,   f = p + e^(S - S_s) g

Here L' = l, S' = s and p' = s p + b, and g is approximated by a polynomial through earlier f (Eq. 8
and 13-14). The paper's B is p - e^(S - S_s) p_s, which only adds a constant to g. The statistics l,
s and b make g as constant as possible. `python -m ddpm_jax.statistics` estimates them for a
network.
"""

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.errors import check, one_line
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    NODES,
    WEIGHTS,
    count_known,
    has_length,
    history,
    integral_weights,
    remember,
)
from ddpm_jax.samplers.ddim import ddim_step


class Statistics(NamedTuple):
    """Tables over increasing lambda, separate for each pixel and channel of an image.

    L and S are the integrals of l and s, and p is a solution of p' = s p + b.
    """

    lambdas: Float[np.ndarray | Array, " n"]
    l: Float[np.ndarray | Array, "n h w c"]
    s: Float[np.ndarray | Array, "n h w c"]
    b: Float[np.ndarray | Array, "n h w c"]
    L: Float[np.ndarray | Array, "n h w c"]
    S: Float[np.ndarray | Array, "n h w c"]
    p: Float[np.ndarray | Array, "n h w c"]


_ENDS = np.array([0, 1], np.float32)
_ZERO = np.zeros((2, 1, 1, 1), np.float32)
X0 = Statistics(_ENDS, _ZERO + 1, _ZERO, _ZERO, _ENDS.reshape(2, 1, 1, 1), _ZERO, _ZERO)
"""l = 1 and s = b = 0, so that f = -x0, as in DPM-Solver++."""


def dpm_solver_v3(
    *, statistics: str | None = None, order: Literal[1, 2, 3] = 3, corrector: bool = True
) -> Sampler:
    """Predict with the `order` newest f, then correct the step with the f at its end (Algorithm 2).

    statistics: a file made by `python -m ddpm_jax.statistics`. Without one f is -x0, and with the
    corrector off this is DPM-Solver++ with exact integrals.

    The step to clean data returns x0. The corrector keeps the oldest f, as UniPC's does, which
    raises orders 2 and 3 by one; the paper's corrector drops it. As in the paper, neither order 1
    nor the first step is corrected, because all later steps would carry the error of a correction
    with a single slope.
    """
    loaded = X0 if statistics is None else load(Path(statistics))
    return with_statistics(loaded, order, corrector)


def with_statistics(statistics: Statistics, order: int, corrector: bool) -> Sampler:
    """Make the sampler from statistics in memory. `dpm_solver_v3` explains the options."""
    check(order in (1, 2, 3), f"Sampler option order must be 1, 2 or 3, not {order}.")
    corrector = corrector and order > 1
    template = np.zeros(statistics.l.shape[1:], np.bool_)  # (h, w, c)
    init = Partial(_init, history(order + corrector), template)
    step = Partial(_step, statistics, Partial(_correct if corrector else _skip_correction))
    return Sampler(init, step, order=order + corrector)


def load(path: Path) -> Statistics:
    """Read statistics from a file. They are cached until the file changes.

    Raise FileNotFoundError for a missing file and ValueError for a file without statistics.
    """
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)
def _load(path: Path, modified: int) -> Statistics:
    try:
        # NumPy does not close a file that it cannot read.
        with path.open("rb") as opened, np.load(opened) as file:
            return Statistics(*(file[name] for name in Statistics._fields))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Statistics file {path} does not exist: run python -m ddpm_jax.statistics to make it."
        ) from None
    # A damaged file raises errors of many types.
    except Exception as error:
        cause = one_line(error).rstrip(".")
        raise ValueError(
            f"{path} holds no statistics ({cause}): run python -m ddpm_jax.statistics to make them."
        ) from error


def _init(history_init, template, xT):
    """An empty history, and an empty previous step, marked by an infinite h."""
    shape = xT.shape[1:]
    check(
        all(n in (1, m) for n, m in zip(template.shape, shape, strict=True)),
        f"The statistics are for images of shape {template.shape}, not {shape}: "
        "estimate them from this run.",
    )
    one = jnp.ones((), xT.dtype)
    return history_init(xT), (xT, one, one, one, jnp.full((), jnp.inf, xT.dtype))


def _step(statistics, correct, keys, denoise, xt, row, state):
    past, step_before = state
    x0 = denoise(xt, row.t).x0

    # At pure noise lambda is -inf and y is infinite. Finite values replace them, and the DDIM step
    # replaces the result.
    lambda_ = row.log_snr / 2
    noise_only = row.sqrt_alpha_bar == 0
    lambda_finite = jnp.where(noise_only, 0, lambda_)
    scale = jnp.where(noise_only, 1, row.sqrt_alpha_bar)

    # l is the derivative of the interpolated L, so that the ODE also holds between the levels of
    # the table.
    tables = Partial(_tables, statistics)
    l = jax.jvp(tables, (lambda_finite,), (jnp.ones_like(lambda_),))[1][0]  # (h, w, c)
    df_dx = (1 - l[None]) / scale  # f = (1 - l) x / sqrt(alpha_bar) - x0
    past = remember(past, df_dx * xt - x0, lambda_)

    x, past_to_predict = correct(statistics, xt, step_before, past)
    x0 = x0 + df_dx * (x - xt)  # f keeps its value from before the correction: Algorithm 2, line 13
    step = x, scale, row.sqrt_alpha_bar_next, lambda_finite, row.h
    x_next = _integrate(statistics, step, past_to_predict)
    x_next = jnp.where(has_length(row.h), x_next, ddim_step(row, x, x0))
    return x_next, (past, step)


def _correct(statistics, xt, step_before, past):
    """Return the corrected x, and the history without its oldest f for the predictor."""
    can_correct = has_length(step_before[-1]) & (count_known(past[1]) > 2)
    x = jnp.where(can_correct, _integrate(statistics, step_before, past), xt)
    return x, tuple(table[:-1] for table in past)


def _skip_correction(statistics, xt, step_before, past):
    return xt, past


def _integrate(statistics, step, past):
    """Take one step, with the polynomial g through all known f (Eq. 9)."""
    x, scale, scale_next, start, h = step
    f, positions = past  # (k, b, h, w, c) and (k,)
    h = jnp.where(has_length(h), h, 1)
    k = len(f)
    dtype = x.dtype
    inner = jnp.asarray(NODES, dtype)
    quadrature = jnp.asarray(WEIGHTS, dtype)[:, None, None, None]

    # The tables at the k known f, at both ends of the step, and at the nodes of the quadrature.
    known = jnp.where(jnp.isfinite(positions), positions, start)
    lambdas = jnp.concatenate((known, jnp.stack([start, start + h]), start + h * inner))
    L, S, p = jax.vmap(Partial(_tables, statistics))(lambdas)  # each (k + 2 + 16, h, w, c)
    L_start, L_end, L_inner = L[k], L[k + 1], L[k + 2 :]
    S_known, S_start, S_inner = S[:k], S[k], S[k + 2 :]
    p_known, p_inner = p[:k], p[k + 2 :]

    # Integrals over the step of e^(L - L_t) e^(S - S_s) s^j, by quadrature.
    weight = h * quadrature * jnp.exp(L_inner - L_end[None])  # (16, h, w, c)
    powers = jnp.stack([inner**j for j in range(k)])  # (k, 16)
    moments = jnp.tensordot(powers, weight * jnp.exp(S_inner - S_start[None]), 1)  # (k, h, w, c)

    # integral_weights is linear in the moments: column j has the weights of the j-th moment alone.
    nodes = (known - start) / h
    unit = jnp.eye(k, dtype=dtype)
    weights_solver = jax.vmap(integral_weights, (None, 0, None))
    weights_by_moment = weights_solver(nodes, unit, count_known(positions))  # (moment, node)
    weights = jnp.tensordot(weights_by_moment.T, moments, 1)[:, None]  # (k, 1, h, w, c)

    g = jnp.exp(S_start[None] - S_known)[:, None] * (f - p_known[:, None])  # (k, b, h, w, c)
    integral = jnp.sum(weights * g, 0) + jnp.sum(weight * p_inner, 0)[None]
    return scale_next * (jnp.exp(L_start - L_end)[None] / scale * x - integral)


def _tables(statistics, lambda_):
    """L, S and p at a lambda, each (h, w, c).

    Within the table they are cubics with the slopes l, s and s p + b at the levels. Outside of it
    they are straight lines.
    """
    lambdas, l, s, b, L, S, p = (jnp.asarray(table, lambda_.dtype) for table in statistics)
    i = jnp.clip(jnp.searchsorted(lambdas, lambda_) - 1, 0, len(lambdas) - 2)
    width = lambdas[i + 1] - lambdas[i]
    inside = jnp.clip(lambda_, lambdas[0], lambdas[-1])
    u = (inside - lambdas[i]) / width

    def cubic(value, slope):
        bend = width * u * (1 - u) * ((1 - u) * slope[i] - u * slope[i + 1])
        end_slope = jnp.where(lambda_ > inside, slope[i + 1], slope[i])
        outside = (lambda_ - inside) * end_slope
        return value[i] + u**2 * (3 - 2 * u) * (value[i + 1] - value[i]) + bend + outside

    return cubic(L, l), cubic(S, s), cubic(p, s * p + b)
