"""The optimizer as optax transformations.

It has a learning rate schedule, skips non-finite updates, scales the loss of float16 networks and
accumulates gradients.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import check, check_at_least, check_settings, check_whole
from ddpm_jax.models import Params
from ddpm_jax.training import importance
from ddpm_jax.training.global_norm import global_norm
from ddpm_jax.training.opt_state import is_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optax's Adam or AdamW, its learning rate schedule and gradient clipping."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 2e-4
    """Learning rate after the warm-up."""
    decay: Literal["constant", "cosine", "epoch_cosine"] = "constant"
    """Schedule after the warm-up. epoch_cosine changes the rate once an epoch."""
    floor: float = 0.0
    """Learning rate at the end of a cosine."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.01
    """Weight decay of AdamW. Adam has none."""
    clip_norm: float | None = None
    """Clip gradients to this global norm; None for no clipping."""

    def __post_init__(self):
        check_settings(self, "optimizer.")
        check(
            self.learning_rate > 0,
            f"optimizer.learning_rate must be positive, not {self.learning_rate}.",
        )
        check(
            0 <= self.floor <= self.learning_rate,
            f"optimizer.floor must be in [0, learning_rate], not {self.floor}.",
        )
        check(
            self.warmup_steps >= 0,
            f"optimizer.warmup_steps must be at least 0, not {self.warmup_steps}.",
        )
        check(
            self.weight_decay >= 0,
            f"optimizer.weight_decay must be at least 0, not {self.weight_decay}.",
        )
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm must be positive, not {self.clip_norm}.",
        )


def learning_rate(settings: Optimizer, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The rate at each optimizer step: linear warm-up, then constant or half a cosine to the floor.

    The cosine is SGDR's, without restarts (Eq. 5, Loshchilov & Hutter 2017).
    """
    peak = settings.learning_rate
    floor = settings.floor
    warmup = settings.warmup_steps
    decay_steps = max(total_steps - warmup, 1)

    def after_warmup(step):
        if settings.decay == "constant":
            return jnp.full_like(step, peak, jnp.float32)
        if settings.decay == "epoch_cosine":
            step = step // steps_per_epoch * steps_per_epoch
        fraction = jnp.minimum(step.astype(jnp.float32) / decay_steps, 1.0)
        return floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))

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
    dtype: Any = "float32",
    accumulation: int = 1,
    importance_timesteps: int | None = None,
) -> optax.GradientTransformation:
    """Make the optimizer: clip, run Adam, skip non-finite updates, scale the loss, accumulate.

    `dtype` is the compute dtype of the network. float16 gets a dynamic loss scale. `accumulation`
    micro-batches make one update. `importance_timesteps` is T for importance-sampled timesteps,
    which need a loss history (`importance.keep_losses`). Raise ValueError unless `accumulation` is
    whole and at least 1.
    """
    check_whole(accumulation=accumulation)
    check_at_least(1, accumulation=accumulation)
    rate = learning_rate(settings, total_steps, steps_per_epoch)
    if settings.name == "adam":
        adam = optax.adam(rate)
    else:
        adam = optax.adamw(rate, weight_decay=settings.weight_decay)
    if settings.clip_norm is None:
        clip = optax.identity()
    else:
        clip = clip_by_global_norm(settings.clip_norm)
    tx = skip_nonfinite(optax.chain(clip, adam))
    if jnp.dtype(dtype) == jnp.float16:
        tx = dynamic_loss_scale(tx)
    if accumulation > 1:
        tx = accumulate(tx, accumulation)
    if importance_timesteps is not None:
        tx = importance.keep_losses(tx, importance_timesteps)
    return tx


def count_of_updates(opt_state: Any) -> int:
    """The number of updates that were applied, by a state of `make_optimizer`; 0 for others."""
    # Adam and its learning rate count the same updates.
    counts = optax.tree.get_all_with_path(opt_state, "count", filtering=is_field)
    return int(counts[0][1]) if counts else 0


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """optax's transformation of this name, with the norm of `global_norm`."""

    def update(grads, state, params=None):
        norm = global_norm(grads)
        return jax.tree.map(
            lambda g: jnp.where(norm < max_norm, g, (g / norm) * max_norm), grads
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class AccumulationState(NamedTuple):
    """The micro-batches since the last update, their part of the mean gradient, the inner state."""

    mini_step: Int[Array, ""]
    mean_grads: Params
    inner: Any


def accumulate(
    inner: optax.GradientTransformation, num_micro_batches: int
) -> optax.GradientTransformation:
    """Update once every `num_micro_batches` micro-batches, with the mean of their gradients.

    optax.MultiSteps would clear its sum by multiplying it by 0, which keeps the NaN of an overflow.
    """

    def init(params):
        mean_grads = jax.tree.map(jnp.zeros_like, params)
        return AccumulationState(jnp.zeros((), jnp.int32), mean_grads, inner.init(params))

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda mean, g: mean + g / num_micro_batches, state.mean_grads, grads)
        zeros = jax.tree.map(jnp.zeros_like, grads)

        def apply():
            return *inner.update(grads, state.inner, params), zeros

        def wait():
            return zeros, state.inner, grads

        is_last = state.mini_step == num_micro_batches - 1
        updates, inner_state, mean_grads = jax.lax.cond(is_last, apply, wait)
        mini_step = (state.mini_step + 1) % num_micro_batches
        return updates, AccumulationState(mini_step, mean_grads, inner_state)

    return optax.GradientTransformation(init, update)


class SkipState(NamedTuple):
    """The number of skipped updates, the number since the last applied one, the inner state."""

    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    inner: Any


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Skip and count updates with a non-finite gradient.

    A skipped update leaves the parameters and the state of `inner` bit for bit the same. The norm
    of the gradient decides, because the training step computes it anyway.
    """

    def init(params):
        # The counters are two arrays, because the training step donates each of them.
        return SkipState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads, state, params=None):
        finite = jnp.isfinite(global_norm(grads))
        updates, inner_state = inner.update(grads, state.inner, params)
        # The neutral element is -0.0: a parameter of -0.0 plus 0.0 would become 0.0.
        updates = jax.tree.map(lambda u: jnp.where(finite, u, -0.0), updates)
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner)
        skip = (~finite).astype(jnp.int32)
        skipped_in_a_row = skip * (state.skipped_in_a_row + 1)
        return updates, SkipState(state.skipped + skip, skipped_in_a_row, inner_state)

    return optax.GradientTransformation(init, update)


class LossScaleState(NamedTuple):
    """The loss scale, the consecutive finite steps since it last changed, the inner state."""

    loss_scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    inner: SkipState


def dynamic_loss_scale(
    inner: optax.GradientTransformation, initial: float = 2.0**15, period: int = 2000
) -> optax.GradientTransformation:
    """Unscale the gradients and adapt the loss scale (section 3.2, Micikevicius et al. 2018).

    `inner` is made by `skip_nonfinite`. The scale halves at a skipped update and doubles after
    `period` consecutive finite ones, within [1, 2^24].
    """

    def init(params):
        loss_scale = jnp.asarray(initial, jnp.float32)
        return LossScaleState(loss_scale, jnp.zeros((), jnp.int32), inner.init(params))

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda g: g / state.loss_scale, grads)
        updates, inner_state = inner.update(grads, state.inner, params)
        finite = inner_state.skipped_in_a_row == 0
        good_steps = jnp.where(finite, state.good_steps + 1, 0)
        growth = jnp.where(good_steps == period, 2.0, 1.0)
        factor = jnp.where(finite, growth, 0.5)
        scale = jnp.clip(state.loss_scale * factor, 1.0, 2.0**24)
        return updates, LossScaleState(scale, good_steps % period, inner_state)

    return optax.GradientTransformation(init, update)
