"""UniPC: the unified predictor and corrector of Zhao et al. 2023, in x0."""

from typing import Literal

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import count_known, exponential_mean, history, remember
from ddpm_jax.samplers.ddim import ddim_step_by


def unipc(
    *,
    order: Literal[1, 2, 3] = 2,
    B: Literal["bh1", "bh2"] = "bh2",
    corrector: bool = True,
    compat: bool = False,
) -> Sampler:
    """Corrects the step that led here with the x0 found here, then goes on from there (Algorithm 1, Zhao et al. 2023).

    Both integrate e^(s - h) times the polynomial through the x0 known: the predictor, of `order`, through this and
    the earlier ones, the corrector of the step before through the new one as well, which raises the order by one.
    Where a single slope is known the paper takes half of it times B(h), which is h (bh1) or 1 - e^-h (bh2).
    compat: the order falls to 1 over the last steps, as in diffusers, which leaves order 2 for the whole.
    """
    check(order in (1, 2, 3), f"order must be 1, 2 or 3, not {order}")
    check(B in ("bh1", "bh2"), f"B must be bh1 or bh2, not {B}")
    b_of_h = Partial({"bh1": _h, "bh2": _one_minus_exp}[B])
    step = Partial(
        _step,
        b_of_h,
        Partial(_correct if corrector else _skip_correction),
        Partial(_falling if compat else _full),
    )
    reached = min(order + corrector, 2) if compat else order + corrector
    return Sampler(Partial(_init, history(order + 1)), step, order=reached)


def _init(history_init, xT):
    """The history, xT, and a step before it of which nothing is known."""
    return (
        history_init(xT),
        xT,
        (jnp.ones((), xT.dtype), jnp.ones((), xT.dtype), jnp.full((), jnp.inf, xT.dtype)),
    )


def _step(b_of_h, correct, highest, keys, denoise, xt, row, state):
    past, x_before, step_before = state
    order_before = highest(row.i - 1, row, past)
    past = remember(past, denoise(xt, row.t).x0, row.log_snr / 2)
    xt = correct(b_of_h, xt, x_before, step_before, past, order_before)
    step = (
        row.sqrt_one_minus_alpha_bar_next / row.sqrt_one_minus_alpha_bar,
        row.sqrt_alpha_bar_next,
        row.h,
    )
    order = jnp.where(jnp.isfinite(row.h), highest(row.i, row, past), 1)
    return _predict(b_of_h, xt, step, past, order), (past, xt, step)


def _predict(b_of_h, xt, step, past, order):
    values, positions = past
    h = jnp.where(jnp.isfinite(step[2]), step[2], 1)
    nodes = (positions - positions[0]) / h
    half = values[0] + b_of_h(h) / _one_minus_exp(h) / 2 * (values[1] - values[0]) / nodes[1]
    mean = exponential_mean(h, nodes, values, order)
    return ddim_step_by(
        *step, xt, jnp.where(order == 1, values[0], jnp.where(order == 2, half, mean))
    )


def _correct(b_of_h, xt, x_before, step_before, past, order):
    values, positions = past
    h = jnp.where(jnp.isfinite(step_before[2]), step_before[2], 1)
    half = values[1] + b_of_h(h) / _one_minus_exp(h) / 2 * (values[0] - values[1])
    mean = exponential_mean(h, (positions - positions[1]) / h, values, order + 1)
    corrected = ddim_step_by(*step_before, x_before, jnp.where(order == 1, half, mean))
    return jnp.where((order > 0) & jnp.isfinite(step_before[2]), corrected, xt)


def _skip_correction(b_of_h, xt, *_):
    return xt


def _full(i, row, past):
    """The order at row i: that of the method, or as many x0 as are known."""
    return jnp.minimum(count_known(past[1]), len(past[1]) - 1)


def _falling(i, row, past):
    return jnp.minimum(_full(i, row, past), row.steps - i)


def _h(h):
    return h


def _one_minus_exp(h):
    return -jnp.expm1(-h)
