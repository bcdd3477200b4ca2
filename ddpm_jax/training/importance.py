"""Timesteps drawn as often as their loss asks for (section 3.3, Nichol & Dhariwal 2021).

L = E_{t ~ p_t} [L_t / (T p_t)],  p_t ~ sqrt(E[L_t^2])                                               Eq. 18

E[L_t^2] is an exponential average, in place of the last ten values. It is part of the optimizer's state, so that it
is saved, restored and the same on every device.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

DECAY = 0.9
MIN_DRAWS = 10
UNIFORM_FRACTION = 0.001


class LossHistory(NamedTuple):
    """For each t: the average of L_t^2, and in how many steps it was drawn."""

    mean_square: Float[Array, " T"]
    seen: Int[Array, " T"]


class HistoryState(NamedTuple):
    """The losses so far, and the state of the optimizer that has nothing to do with them."""

    loss_history: LossHistory
    inner: Any


def keep_losses(
    inner: optax.GradientTransformation, timesteps: int
) -> optax.GradientTransformation:
    """`inner` with an empty history of T timesteps beside its state; the training step fills it."""

    def init(params):
        return HistoryState(
            LossHistory(jnp.zeros(timesteps), jnp.zeros(timesteps, jnp.int32)), inner.init(params)
        )

    def update(grads, state, params=None):
        updates, inner_state = inner.update(grads, state.inner, params)
        return updates, state._replace(inner=inner_state)

    return optax.GradientTransformation(init, update)


def sample_timesteps(opt_state: Any, batch: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """The batch with a `t` of each example's `key`, and the weights of its losses; as it was, and 1, without a history.

    Where a draw lies within rounding of the edge of two timesteps, another number of devices may give the other one.
    """
    history = optax.tree.get(opt_state, "loss_history")
    if history is None:
        return batch, jnp.ones(())
    t, weights = draw_timesteps(batch["key"], history)
    return batch | {"t": t}, weights


def update_history(
    opt_state: Any, batch: dict[str, Array], losses: Float[Array, " b"], mean: Callable[[Any], Any]
) -> Any:
    """The optimizer's state after the unweighted losses of a batch from `draw`; `mean` is over the devices."""
    history = optax.tree.get(opt_state, "loss_history")
    if history is None:
        return opt_state
    return optax.tree.set(opt_state, loss_history=record(history, batch["t"], losses, mean))


def probabilities(history: LossHistory) -> Float[Array, " T"]:
    """p_t: uniform until every t has been drawn in ten steps, then Eq. 18 with a share of 0.001 spread evenly.

    That share, of Nichol & Dhariwal's code, leaves no t without a chance, so that the estimate stays unbiased.
    """
    uniform = jnp.full_like(history.mean_square, 1 / len(history.seen))
    root = jnp.sqrt(history.mean_square)
    p = (1 - UNIFORM_FRACTION) * root / jnp.maximum(
        jnp.sum(root), 1e-30
    ) + UNIFORM_FRACTION * uniform
    ready = jnp.all(history.seen >= MIN_DRAWS) & (jnp.sum(root) > 0)
    return jnp.where(ready, p, uniform)


def draw_timesteps(
    keys: Key[Array, " b"], history: LossHistory
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """t ~ p_t of each example's own key, and its weight 1 / (T p_t)."""
    p = probabilities(history)
    below = jnp.cumsum(p)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(b"timestep"))
    u = jax.vmap(jax.random.uniform)(keys) * below[-1]
    t = jnp.minimum(jnp.searchsorted(below, u, side="right"), len(p) - 1).astype(jnp.int32)
    return t, 1 / (len(p) * p[t])


def record(
    history: LossHistory,
    t: Int[Array, " b"],
    losses: Float[Array, " b"],
    mean: Callable[[Any], Any],
) -> LossHistory:
    """The history after a batch. Losses that are not finite are left out.

    The first mean of L_t^2 counts whole, later ones by 1 - 0.9.
    """
    drawn = (t[None, :] == jnp.arange(len(history.seen))[:, None]) & jnp.isfinite(losses**2)[
        None, :
    ]
    squares = mean(jnp.sum(jnp.where(drawn, losses[None, :] ** 2, 0.0), 1))
    count = mean(jnp.sum(drawn.astype(jnp.float32), 1))
    new = squares / jnp.maximum(count, 1e-30)
    rate = jnp.where(history.seen == 0, 1.0, 1 - DECAY)
    mean_square = jnp.where(
        count > 0, history.mean_square + rate * (new - history.mean_square), history.mean_square
    )
    return LossHistory(mean_square, history.seen + (count > 0).astype(jnp.int32))
