"""Timesteps sampled in proportion to their losses (section 3.3, Nichol & Dhariwal 2021).

L = E_{t ~ p_t} [L_t / (T p_t)],  p_t ~ sqrt(E[L_t^2])                                       Eq. 18

E[L_t^2] is an exponential average, where the paper averages the last ten values. It is part of the
optimizer's state, so that it is saved, restored and the same on every device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import draws
from ddpm_jax.diffusion.schedule import table_at
from ddpm_jax.training.opt_state import get_field

DECAY = 0.9
MIN_DRAWS = 10
UNIFORM_FRACTION = 0.001


class LossHistory(NamedTuple):
    """For each t, the average of L_t^2 and the number of steps in which t was drawn."""

    mean_square: Float[Array, " T"]
    seen: Int[Array, " T"]


class HistoryState(NamedTuple):
    """The loss history and the state of the wrapped optimizer."""

    loss_history: LossHistory
    inner: Any


def keep_losses(
    inner: optax.GradientTransformation, timesteps: int
) -> optax.GradientTransformation:
    """Keep a loss history of T timesteps beside the state of `inner`.

    The history starts empty. The training step fills it.
    """

    def init(params):
        history = LossHistory(jnp.zeros(timesteps, jnp.float32), jnp.zeros(timesteps, jnp.int32))
        return HistoryState(history, inner.init(params))

    def update(grads, state, params=None):
        updates, inner_state = inner.update(grads, state.inner, params)
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformation(init, update)


def sample_timesteps(opt_state: Any, batch: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """Sample a `t` for each `key` of the batch. Return the new batch and the weights of its losses.

    Without a loss history the batch stays the same and the weight is 1. The rounding of p_t depends
    on the number of devices, so a draw next to the boundary of two timesteps may fall on the other
    one.
    """
    history = get_field(opt_state, "loss_history")
    if history is None:
        return batch, jnp.ones((), jnp.float32)
    t, weights = draw_timesteps(batch["key"], history)
    return batch | {"t": t}, weights


def update_history(
    opt_state: Any, batch: dict[str, Array], losses: Float[Array, " b"], mean: Callable[[Any], Any]
) -> Any:
    """Record the unweighted losses of a batch from `sample_timesteps` in the optimizer's state.

    `mean` averages over the devices.
    """
    history = get_field(opt_state, "loss_history")
    if history is None:
        return opt_state
    return optax.tree.set(opt_state, loss_history=record(history, batch["t"], losses, mean))


def probabilities(history: LossHistory) -> Float[Array, " T"]:
    """p_t: uniform until every t was drawn in ten steps, then Eq. 18 mixed with 0.001 uniform.

    The uniform fraction is from Nichol & Dhariwal's code. It keeps every p_t above 0, so that the
    estimate stays unbiased.
    """
    uniform = jnp.full_like(history.mean_square, 1 / len(history.seen))
    root = jnp.sqrt(history.mean_square)
    total = jnp.maximum(jnp.sum(root), 1e-30)
    p = (1 - UNIFORM_FRACTION) * root / total + UNIFORM_FRACTION * uniform
    ready = jnp.all(history.seen >= MIN_DRAWS) & (jnp.sum(root) > 0)
    return jnp.where(ready, p, uniform)


def draw_timesteps(
    keys: Key[Array, " b"], history: LossHistory
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Draw t ~ p_t with each example's own key. Return t and its weight 1 / (T p_t)."""
    p = probabilities(history)
    cumulative = jnp.cumsum(p)
    # The last sum may differ from 1 by rounding.
    u = draws.uniform(draws.fold_in_name(keys, "timestep")) * cumulative[-1]  # (b,)
    # The default method of searchsorted is a loop, which cannot carry a sharded array.
    t = jnp.searchsorted(cumulative, u, side="right", method="compare_all")
    t = jnp.minimum(t, len(p) - 1).astype(jnp.int32)
    return t, 1 / (len(p) * table_at(p, t))


def record(
    history: LossHistory,
    t: Int[Array, " b"],
    losses: Float[Array, " b"],
    mean: Callable[[Any], Any],
) -> LossHistory:
    """Add the losses of a batch to the history. Non-finite losses are left out.

    The first mean of L_t^2 starts the average. Later ones enter with the weight 1 - DECAY.
    """
    finite = jnp.isfinite(losses**2)
    drawn = (t[None, :] == jnp.arange(len(history.seen), dtype=t.dtype)[:, None]) & finite[
        None, :
    ]  # (T, b)
    squares = mean(jnp.sum(jnp.where(drawn, losses[None, :] ** 2, 0.0), 1))  # (T,)
    counts = mean(jnp.sum(drawn.astype(jnp.float32), 1))  # (T,)
    new = squares / jnp.maximum(counts, 1e-30)
    rate = jnp.where(history.seen == 0, 1.0, 1 - DECAY)
    moved = history.mean_square + rate * (new - history.mean_square)
    mean_square = jnp.where(counts > 0, moved, history.mean_square)
    return LossHistory(mean_square, history.seen + (counts > 0).astype(jnp.int32))
