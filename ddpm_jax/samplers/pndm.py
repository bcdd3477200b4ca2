"""Pseudo numerical methods for diffusion models: Liu et al. 2022."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    change_from_newest,
    count_known,
    history,
    integral_weights,
    remember,
    uniform_moments,
)
from ddpm_jax.samplers.euler import euler_step, min_signal_for


def pndm(
    *, runge_kutta: bool = True, average: Literal["eps", "v"] = "eps", compat: bool = False
) -> Sampler:
    """DDIM's step with the mean of eps over it, from the four newest by Adams and Bashforth's weights (PLMS, Eq. 12).

    The weights, 55/24, -59/24, 37/24, -9/24, are for timesteps at equal distances. The first three steps are Runge and
    Kutta's (PRK, Eq. 13) of four evaluations each, or else the first is Heun's and the order rises from there.
    average: v takes the mean of v in place of eps, as diffusers does for networks that predict v, and converges with
    order 1 only. compat: as diffusers, which takes the mean over the step to clean data too, where else that is DDIM's.
    """
    check(average in AVERAGES, f"average must be eps or v, not {average}")
    start, extra = (_runge_kutta, (3, 3, 3)) if runge_kutta else (_heun, (1,))
    step = Partial(
        _step,
        Partial(start),
        len(extra),
        Partial(AVERAGES[average]),
        compat,
        min_signal_for(compat),
    )
    order = 2 if average == "eps" else 1
    return Sampler(history(4), step, order=order, startup_evaluations=extra)


def _step(start, until, averaged, to_the_end, noise, keys, denoise, xt, row, state):
    x0, eps, _ = prediction = denoise(xt, row.t)
    value, per_value = averaged(prediction, row.sqrt_alpha_bar, row.sqrt_one_minus_alpha_bar)
    starting = (count_known(state[1]) < until) & jnp.isfinite(row.h)
    values, positions = state = remember(state, value, row.i)
    count = jnp.where(jnp.isfinite(row.h) | to_the_end, count_known(positions), 1)
    weights = integral_weights(
        -jnp.arange(4, dtype=eps.dtype), uniform_moments(4, eps.dtype), count
    )

    def move(row, change):
        return euler_step(row, x0, eps, per_value * change, noise)

    def ask(x, t, a, b):
        return averaged(denoise(x, t), a, b)[0] - value

    change = jax.lax.cond(
        starting, lambda: start(move, ask, row), lambda: change_from_newest(weights, values)
    )
    return move(row, change), state


def _heun(move, ask, row):
    return _ask_at_end(ask, row, move(row, 0.0)) / 2


def _runge_kutta(move, ask, row):
    t_middle = (row.t.astype(row.h.dtype) + row.t_next_clamped.astype(row.h.dtype)) / 2
    a, b = row.schedule.signal_and_noise(t_middle)
    half = row._replace(sqrt_alpha_bar_next=a, sqrt_one_minus_alpha_bar_next=b)
    change_2 = ask(move(half, 0.0), t_middle, a, b)
    change_3 = ask(move(half, change_2), t_middle, a, b)
    change_4 = _ask_at_end(ask, row, move(row, change_3))
    return (2 * change_2 + 2 * change_3 + change_4) / 6


def _ask_at_end(ask, row, x):
    return ask(x, row.t_next_clamped, row.sqrt_alpha_bar_next, row.sqrt_one_minus_alpha_bar_next)


def _eps(prediction, a, b):
    return prediction.eps, 1.0


def _v(prediction, a, b):
    """v, and what eps gains with it where x stays."""
    return a * prediction.eps - b * prediction.x0, a


AVERAGES = {"eps": _eps, "v": _v}
