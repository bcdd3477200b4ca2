"""DPM-Solver-v3: Zheng, Lu, Chen & Zhu 2023, in the form that a network's own statistics choose.

With lambda = log SNR / 2 and y = x / sqrt(alpha_bar) the ODE is y' = -l y - f, f = (1 - l) y - x0, for any l(lambda)
(Eq. 4 and 6), so that of the step from lambda_s to lambda_t only an integral of f is to be approximated:

    y_t = e^(L_s - L_t) y_s - integral of e^(L - L_t) f,   f = p + e^(S - S_s) g          L' = l, S' = s, p' = s p + b

Here g is a polynomial through earlier f (Eq. 8 and 13-14; its B is p - e^(S - S_s) p_s, and a constant in g is free).
The statistics l, s and b make g as constant as can be: `python -m ddpm_jax.statistics` estimates them.
"""

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    NODES,
    WEIGHTS,
    count_known,
    history,
    integral_weights,
    remember,
)
from ddpm_jax.samplers.ddim import ddim_step


class Statistics(NamedTuple):
    """Tables over rising lambda, of every number of a picture: l, s, b, their integrals L and S, and p' = s p + b."""

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
"""l = 1, s = b = 0, f = -x0: that of DPM-Solver++."""


def dpm_solver_v3(
    *, statistics: str | None = None, order: Literal[1, 2, 3] = 3, corrector: bool = True
) -> Sampler:
    """Predicts through the `order` newest f, then corrects that step with the f found at its end (Algorithm 2).

    `statistics` is a file of `python -m ddpm_jax.statistics`; without one f is -x0, and what remains without the
    corrector is DPM-Solver++ with exact integrals. A step to clean data takes x0. The corrector keeps the oldest f, as
    UniPC's does, which raises orders 2 and 3 by one; the paper's lets go of it. As in the paper neither order 1 nor the
    first step is corrected: all corrected states after it would carry the error of a single slope.
    """
    return with_statistics(X0 if statistics is None else load(Path(statistics)), order, corrector)


def with_statistics(statistics: Statistics, order: int, corrector: bool) -> Sampler:
    """The sampler of these statistics."""
    check(order in (1, 2, 3), f"order must be 1, 2 or 3, not {order}")
    corrector = corrector and order > 1
    start = Partial(_init, history(order + corrector), np.zeros(statistics.l.shape[1:], np.bool_))
    step = Partial(_step, statistics, Partial(_correct if corrector else _skip_correction))
    return Sampler(start, step, order=order + corrector)


def load(path: Path) -> Statistics:
    """The statistics of a file, read once; raises FileNotFoundError or ValueError, with the remedy."""
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)
def _load(path: Path, modified: int) -> Statistics:
    try:
        with np.load(path) as file:
            return Statistics(*(file[name] for name in Statistics._fields))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is not there: python -m ddpm_jax.statistics makes it from a run"
        ) from None
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} holds no statistics of python -m ddpm_jax.statistics ({error})"
        ) from error


def _init(history_init, like, xT):
    """The history, and a step before xT of which nothing is known."""
    fits = all(n in (1, m) for n, m in zip(like.shape, xT.shape[1:], strict=True))
    check(
        fits,
        f"the statistics are of pictures {like.shape}, not {xT.shape[1:]}: estimate them from this run",
    )
    one = jnp.ones((), xT.dtype)
    return history_init(xT), (xT, one, one, one, jnp.full((), jnp.inf, xT.dtype))


def _step(statistics, correct, keys, denoise, xt, row, state):
    past, step_before = state
    x0 = denoise(xt, row.t).x0
    at, noise_only = row.log_snr / 2, row.sqrt_alpha_bar == 0
    at_finite, scale = jnp.where(noise_only, 0, at), jnp.where(noise_only, 1, row.sqrt_alpha_bar)
    l = jax.jvp(Partial(_tables, statistics), (at_finite,), (jnp.ones_like(at),))[1][0]
    of_x = (1 - l[None]) / scale
    past = remember(past, of_x * xt - x0, at)
    x, newest = correct(statistics, xt, step_before, past)
    x0 = x0 + of_x * (x - xt)  # so that f stays what it was: Algorithm 2, line 13
    step = x, scale, row.sqrt_alpha_bar_next, at_finite, row.h
    return jnp.where(
        jnp.isfinite(row.h), _integrate(statistics, step, newest), ddim_step(row, x, x0)
    ), (past, step)


def _correct(statistics, xt, step_before, past):
    """x corrected, and the f that the predictor goes on with."""
    may = jnp.isfinite(step_before[-1]) & (count_known(past[1]) > 2)
    return jnp.where(may, _integrate(statistics, step_before, past), xt), tuple(
        table[:-1] for table in past
    )


def _skip_correction(statistics, xt, step_before, past):
    return xt, past


def _integrate(statistics, step, past):
    """Where a step leads with the polynomial g through all that is known."""
    (x, scale, scale_next, start, h), (f, positions) = step, past
    h, k, dtype = jnp.where(jnp.isfinite(h), h, 1), len(f), x.dtype
    inner, quadrature = jnp.asarray(NODES, dtype), jnp.asarray(WEIGHTS, dtype)[:, None, None, None]
    places = (
        jnp.where(jnp.isfinite(positions), positions, start),
        jnp.stack([start, start + h]),
        start + h * inner,
    )
    L, S, p = jax.vmap(Partial(_tables, statistics))(jnp.concatenate(places))
    weight = h * quadrature * jnp.exp(L[k + 2 :] - L[k + 1][None])
    powers = jnp.stack([inner**j for j in range(k)])
    moments = jnp.tensordot(powers, weight * jnp.exp(S[k + 2 :] - S[k][None]), 1)
    nodes, unit = (places[0] - start) / h, jnp.eye(k, dtype=dtype)
    of_moment = jax.vmap(integral_weights, (None, 0, None))(nodes, unit, count_known(positions))
    g = jnp.exp(S[k][None] - S[:k])[:, None] * (f - p[:k, None])
    integral = (
        jnp.sum(jnp.tensordot(of_moment.T, moments, 1)[:, None] * g, 0)
        + jnp.sum(weight * p[k + 2 :], 0)[None]
    )
    return scale_next * (jnp.exp(L[k] - L[k + 1])[None] / scale * x - integral)


def _tables(statistics, at):
    """L, S and p at a lambda, by cubics with the slopes l, s and s p + b; on straight lines outside the table."""
    lambdas, l, s, b, L, S, p = (jnp.asarray(table, at.dtype) for table in statistics)
    i = jnp.clip(jnp.searchsorted(lambdas, at) - 1, 0, len(lambdas) - 2)
    width, inside = lambdas[i + 1] - lambdas[i], jnp.clip(at, lambdas[0], lambdas[-1])
    u = (inside - lambdas[i]) / width

    def cubic(value, slope):
        bend = width * u * (1 - u) * ((1 - u) * slope[i] - u * slope[i + 1])
        outside = (at - inside) * jnp.where(at > inside, slope[i + 1], slope[i])
        return value[i] + u**2 * (3 - 2 * u) * (value[i + 1] - value[i]) + bend + outside

    return cubic(L, l), cubic(S, s), cubic(p, s * p + b)
