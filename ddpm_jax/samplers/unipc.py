"""UniPC: the unified predictor and corrector of Zhao et al. 2023, in x0."""

from typing import Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import (
    count_known,
    exponential_mean,
    has_length,
    history,
    remember,
)
from ddpm_jax.samplers.ddim import ddim_step_by


def unipc(
    *,
    order: Literal[1, 2, 3] = 2,
    B: Literal["bh1", "bh2"] = "bh2",
    corrector: bool = True,
    compat: bool = False,
) -> Sampler:
    """Correct the previous step with the x0 at its end, then predict the next (Algorithm 1).

    Both integrate e^(s - h) times a polynomial through known x0. The predictor's polynomial goes
    through the `order` newest x0. The corrector's also goes through the x0 at the end of its step,
    which raises the order by one. If only one slope is known, the integral is that slope times
    B(h) / 2 as in the paper, where B(h) is h (bh1) or 1 - e^-h (bh2).
    compat: as in diffusers, the order falls to 1 over the last steps, so the order of convergence
    is at most 2.
    """
    check(order in (1, 2, 3), f"Sampler option order must be 1, 2 or 3, not {order}.")
    check(B in B_FUNCTIONS, f"Sampler option B must be bh1 or bh2, not {B}.")
    step = Partial(
        _step,
        Partial(B_FUNCTIONS[B]),
        Partial(_correct if corrector else _skip_correction),
        Partial(_order_within_steps_left if compat else _known_order),
    )
    reached_order = order + corrector
    if compat:
        reached_order = min(reached_order, 2)
    return Sampler(Partial(_init, history(order + 1)), step, order=reached_order)


def _init(history_init, xT):
    """An empty history, xT, and an empty step before it: its h is infinite."""
    one = jnp.ones((), xT.dtype)
    step_before = one, one, jnp.full((), jnp.inf, xT.dtype)
    return history_init(xT), xT, step_before


def _step(B, correct, order_rule, keys, denoise, xt, row, state):
    past, x_before, step_before = state
    order_before = order_rule(row.i - 1, row, past)
    past = remember(past, denoise(xt, row.t).x0, row.log_snr / 2)
    xt = correct(B, xt, x_before, step_before, past, order_before)
    std_ratio = row.sqrt_one_minus_alpha_bar_next / row.sqrt_one_minus_alpha_bar
    step = std_ratio, row.sqrt_alpha_bar_next, row.h
    order = jnp.where(has_length(row.h), order_rule(row.i, row, past), 1)
    return _predict(B, xt, step, past, order), (past, xt, step)


def _predict(B, xt, step, past, order):
    """Take a step with the mean of x0 over it, from the `order` newest x0."""
    values, positions = past
    *_, h = step
    h = jnp.where(has_length(h), h, 1)
    nodes = (positions - positions[0]) / h
    half_weight = B(h) / _one_minus_exp(h) / 2
    one_slope = values[0] + half_weight * (values[1] - values[0]) / nodes[1]
    mean = exponential_mean(h, nodes, values, order)
    x0 = jnp.where(order == 1, values[0], jnp.where(order == 2, one_slope, mean))
    return ddim_step_by(*step, xt, x0)


def _correct(B, xt, x_before, step_before, past, order):
    """Repeat the previous step with a mean that includes the x0 at its end."""
    values, positions = past
    *_, h = step_before
    moved = has_length(h)
    h = jnp.where(moved, h, 1)
    half_weight = B(h) / _one_minus_exp(h) / 2
    one_slope = values[1] + half_weight * (values[0] - values[1])
    mean = exponential_mean(h, (positions - positions[1]) / h, values, order + 1)
    x0 = jnp.where(order == 1, one_slope, mean)
    corrected = ddim_step_by(*step_before, x_before, x0)
    return jnp.where((order > 0) & moved, corrected, xt)


def _skip_correction(B, xt, *_):
    return xt


def _known_order(i, row, past):
    """The order of the step at row i: the option `order`, or the number of known x0 if smaller."""
    _, positions = past
    return jnp.minimum(count_known(positions), len(positions) - 1)


def _order_within_steps_left(i, row, past):
    """The order of `_known_order`, but at most the number of steps left."""
    return jnp.minimum(_known_order(i, row, past), row.steps - i)


def _h(h):
    return h


def _one_minus_exp(h):
    return -jnp.expm1(-h)


B_FUNCTIONS = {"bh1": _h, "bh2": _one_minus_exp}
