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
    """Take the DDIM step with the Adams-Bashforth mean of the four newest eps (PLMS, Eq. 12).

    The weights 55/24, -59/24, 37/24, -9/24 are for equally spaced timesteps. The step to clean data
    is the DDIM step.
    runge_kutta: take three Runge-Kutta steps (PRK, Eq. 13) of four evaluations each at the start.
    Otherwise the first step is Heun's, and the order rises from there.
    average: v averages v in place of eps, as diffusers does for networks that predict v. The order
    of convergence is then 1.
    compat: as in diffusers, use the mean also in the step to clean data, and where sqrt(alpha_bar)
    is at most 0.001.
    """
    check(average in AVERAGES, f"Sampler option average must be eps or v, not {average}.")
    startup = _runge_kutta if runge_kutta else _heun
    startup_evaluations = (3, 3, 3) if runge_kutta else (1,)
    step = Partial(
        _step,
        Partial(startup),
        len(startup_evaluations),
        Partial(AVERAGES[average]),
        compat,
        min_signal_for(compat),
    )
    order = 2 if average == "eps" else 1
    return Sampler(history(4), step, order=order, startup_evaluations=startup_evaluations)


def _step(
    startup,
    startup_steps,
    averaged_value,
    average_to_clean_data,
    min_signal,
    keys,
    denoise,
    xt,
    row,
    state,
):
    prediction = denoise(xt, row.t)
    x0, eps, _ = prediction
    value, eps_per_value = averaged_value(
        prediction, row.sqrt_alpha_bar, row.sqrt_one_minus_alpha_bar
    )
    finite = jnp.isfinite(row.h)
    is_startup = (count_known(state[1]) < startup_steps) & finite
    state = remember(state, value, row.i)
    values, positions = state

    # Eq. 12: the nodes 0, -1, -2, -3 give the Adams-Bashforth weights, of lower order at the start.
    num_nodes = jnp.where(finite | average_to_clean_data, count_known(positions), 1)
    nodes = -jnp.arange(4, dtype=eps.dtype)
    weights = integral_weights(nodes, uniform_moments(4, eps.dtype), num_nodes)

    def ddim_step(row, change):
        """Take the DDIM step of a row with value + change in place of the value at xt."""
        return euler_step(row, x0, eps, eps_per_value * change, min_signal)

    def change_at(x, t, sqrt_alpha_bar, sqrt_one_minus_alpha_bar):
        """The value at x minus the value at xt, by one evaluation."""
        value_at_x, _ = averaged_value(denoise(x, t), sqrt_alpha_bar, sqrt_one_minus_alpha_bar)
        return value_at_x - value

    change = jax.lax.cond(
        is_startup,
        lambda: startup(ddim_step, change_at, row),
        lambda: change_from_newest(weights, values),
    )
    return ddim_step(row, change), state


def _heun(ddim_step, change_at, row):
    return _change_at_end(change_at, row, ddim_step(row, 0.0)) / 2


def _runge_kutta(ddim_step, change_at, row):
    """The mean of Eq. 13 minus its first term: (e_1 + 2 e_2 + 2 e_3 + e_4) / 6 - e_1."""
    dtype = row.h.dtype
    t_middle = (row.t.astype(dtype) + row.t_next_clamped.astype(dtype)) / 2
    a, b = row.schedule.signal_and_noise(t_middle)
    half = row._replace(sqrt_alpha_bar_next=a, sqrt_one_minus_alpha_bar_next=b)
    change_2 = change_at(ddim_step(half, 0.0), t_middle, a, b)
    change_3 = change_at(ddim_step(half, change_2), t_middle, a, b)
    change_4 = _change_at_end(change_at, row, ddim_step(row, change_3))
    return (2 * change_2 + 2 * change_3 + change_4) / 6


def _change_at_end(change_at, row, x):
    t = row.t_next_clamped
    return change_at(x, t, row.sqrt_alpha_bar_next, row.sqrt_one_minus_alpha_bar_next)


def _eps_value(prediction, sqrt_alpha_bar, sqrt_one_minus_alpha_bar):
    """eps, and d eps / d eps = 1."""
    return prediction.eps, 1.0


def _v_value(prediction, sqrt_alpha_bar, sqrt_one_minus_alpha_bar):
    """v, and d eps / d v = sqrt(alpha_bar) at fixed x."""
    v = sqrt_alpha_bar * prediction.eps - sqrt_one_minus_alpha_bar * prediction.x0
    return v, sqrt_alpha_bar


AVERAGES = {"eps": _eps_value, "v": _v_value}
"""Functions (prediction, sqrt_alpha_bar, sqrt_one_minus_alpha_bar) -> value, d eps / d value."""
