"""The optimizer of a recipe as optax transformations: learning rate, skipped updates, loss scale, accumulation."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.training import importance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optax's Adam or AdamW, the learning rate over time, gradient clipping."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    """The highest rate."""
    decay: Literal["constant", "cosine", "epoch_cosine"] = "constant"
    """After the warm-up: stay, fall along a cosine over the whole run, or the same in one stair an epoch."""
    floor: float = 0.0
    """Where a cosine ends."""
    warmup_steps: int = 0
    """Steps of linear rise from 0."""
    weight_decay: float = 0.01
    """AdamW's; Adam has none."""
    clip_norm: float | None = None
    """Scale gradients down to this global norm; None for never."""

    def __post_init__(self):
        check(
            self.learning_rate > 0,
            f"optimizer.learning_rate must be positive, not {self.learning_rate}",
        )
        check(
            0 <= self.floor <= self.learning_rate,
            f"optimizer.floor must be in [0, learning rate], not {self.floor}",
        )
        check(
            self.warmup_steps >= 0,
            f"optimizer.warmup_steps must not be negative, not {self.warmup_steps}",
        )
        check(
            self.weight_decay >= 0,
            f"optimizer.weight_decay must not be negative, not {self.weight_decay}",
        )
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm must be positive, not {self.clip_norm}",
        )


def learning_rate(settings: Optimizer, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The rate at each optimizer step: linear warm-up from 0, then constant or along half a cosine to the floor.

    The cosine is SGDR's without restarts (Eq. 5, Loshchilov & Hutter 2017).
    """
    peak, floor, warmup = settings.learning_rate, settings.floor, settings.warmup_steps
    length = max(total_steps - warmup, 1)

    def after_warmup(step):
        if settings.decay == "constant":
            return jnp.full_like(step, peak, jnp.float32)
        if settings.decay == "epoch_cosine":
            step = step // steps_per_epoch * steps_per_epoch
        share = jnp.minimum(step.astype(jnp.float32) / length, 1.0)
        return floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * share))

    def rate(step):
        step = jnp.asarray(step, jnp.int32)
        rising = peak * step.astype(jnp.float32) / max(warmup, 1)
        return jnp.where(step < warmup, rising, after_warmup(jnp.maximum(step - warmup, 0)))

    return rate


def make_optimizer(
    settings: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    *,
    dtype: str = "float32",
    accumulation: int = 1,
    importance_timesteps: int | None = None,
) -> optax.GradientTransformation:
    """The optimizer: clipping, Adam, skipped updates, loss scale, accumulation, a history of losses.

    `dtype` is what the network computes in; float16 gets a dynamic loss scale. `accumulation` micro-batches make one
    update. `importance_timesteps` is T where timesteps are drawn by their losses (`importance.keep_losses`).
    """
    rate = learning_rate(settings, total_steps, steps_per_epoch)
    adam = (
        optax.adam(rate)
        if settings.name == "adam"
        else optax.adamw(rate, weight_decay=settings.weight_decay)
    )
    clip = (
        optax.identity()
        if settings.clip_norm is None
        else optax.clip_by_global_norm(settings.clip_norm)
    )
    tx = skip_nonfinite(optax.chain(clip, adam))
    if dtype == "float16":
        tx = dynamic_loss_scale(tx)
    if accumulation > 1:
        tx = accumulate(tx, accumulation)
    if importance_timesteps is not None:
        tx = importance.keep_losses(tx, importance_timesteps)
    return tx


class AccumulationState(NamedTuple):
    """The micro-batches so far, the mean of their gradients so far, and the inner optimizer's state."""

    mini_step: Int[Array, ""]
    mean_grads: Params
    inner: Any


def accumulate(inner: optax.GradientTransformation, count: int) -> optax.GradientTransformation:
    """One update by the mean gradient of `count` micro-batches, and none within.

    optax.MultiSteps clears its sum by a product with 0, so that an overflow stays there as NaN for good.
    """

    def init(params):
        return AccumulationState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), inner.init(params)
        )

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda mean, g: mean + g / count, state.mean_grads, grads)
        none = jax.tree.map(jnp.zeros_like, grads)

        def apply():
            return *inner.update(grads, state.inner, params), none

        def wait():
            return none, state.inner, grads

        updates, inner_state, mean_grads = jax.lax.cond(state.mini_step == count - 1, apply, wait)
        return updates, AccumulationState((state.mini_step + 1) % count, mean_grads, inner_state)

    return optax.GradientTransformation(init, update)


class SkipState(NamedTuple):
    """How many updates were skipped, how many of them since the last good one, and the inner optimizer's state."""

    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    inner: Any


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leaves parameters and the state of `inner` bit for bit where the gradient is not finite, and counts that.

    What is asked is whether its norm is finite, which the training step computes anyway.
    """

    def init(params):
        # not one zero for both: the step donates each
        return SkipState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads, state, params=None):
        finite = jnp.isfinite(optax.tree.norm(grads))
        updates, inner_state = inner.update(grads, state.inner, params)
        updates = jax.tree.map(
            lambda u: jnp.where(finite, u, -0.0), updates
        )  # x + 0.0 is not x where x is -0.0
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner)
        bad = (~finite).astype(jnp.int32)
        return updates, SkipState(
            state.skipped + bad, bad * (state.skipped_in_a_row + 1), inner_state
        )

    return optax.GradientTransformation(init, update)


class LossScaleState(NamedTuple):
    """The factor on the loss, the good steps since it last changed, and the inner optimizer's state."""

    loss_scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    inner: SkipState


def dynamic_loss_scale(
    inner: optax.GradientTransformation, initial: float = 2.0**15, period: int = 2000
) -> optax.GradientTransformation:
    """Undoes the loss scale for an `inner` that skips, and adapts it (Micikevicius et al. 2018, section 3.2).

    The scale halves at a skipped update and doubles after `period` good ones in a row, within [1, 2^24].
    """

    def init(params):
        return LossScaleState(
            jnp.asarray(initial, jnp.float32), jnp.zeros((), jnp.int32), inner.init(params)
        )

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda g: g / state.loss_scale, grads)
        updates, inner_state = inner.update(grads, state.inner, params)
        finite = inner_state.skipped_in_a_row == 0
        good = jnp.where(finite, state.good_steps + 1, 0)
        factor = jnp.where(finite, jnp.where(good == period, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.loss_scale * factor, 1.0, 2.0**24)
        return updates, LossScaleState(scale, good % period, inner_state)

    return optax.GradientTransformation(init, update)
