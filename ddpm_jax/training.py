"""The training step: a pure function (state, batch) -> (state, metrics), for any loss, optimizer and device count."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import importance
from ddpm_jax.config import Config, Ema, Optimizer
from ddpm_jax.ema import decay_rate, power_gamma, power_rate
from ddpm_jax.errors import check
from ddpm_jax.models import Model, Params

Loss = Callable[[Params, Key[Array, " b"], dict[str, Array]], Float[Array, " b"]]


class TrainState(NamedTuple):
    """All that changes while training, arrays only.

    `step` counts optimizer steps, skipped updates included, because the batch depends on it.
    `ema_params` holds {name: params}. Accumulators, counters and the loss scale live in `opt_state`.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: dict[str, Params]
    opt_state: Any


def init_state(params: Params, tx: optax.GradientTransformation, ema: Ema | None = None) -> TrainState:
    """The state before the first step; the averages start as copies of the parameters, because steps donate both."""
    ema = ema or Ema()
    averages = {name: jax.tree.map(jnp.copy, params) for name in (*ema.decays, *ema.tracks)}
    return TrainState(jnp.zeros((), jnp.int32), params, averages, tx.init(params))


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


def make_optimizer(config: Config, images: int) -> optax.GradientTransformation:
    """The optimizer over so many images: clipping, Adam, loss scale, accumulation, importance of t, outermost last."""
    settings = config.optimizer
    rate = learning_rate(settings, config.total_steps(images), config.steps_per_epoch(images))
    adam = optax.adam(rate) if settings.name == "adam" else optax.adamw(rate, weight_decay=settings.weight_decay)
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    tx = optax.chain(clip, adam)
    if config.training.dtype == "float16":
        tx = dynamic_loss_scale(tx)
    if config.training.accumulation > 1:
        tx = accumulate(tx, config.training.accumulation)
    if config.objective.times == "importance":
        tx = importance.keep_losses(tx, config.objective.timesteps)
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
        return AccumulationState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda mean, g: mean + g / count, state.mean_grads, grads)
        updates, inner_state = inner.update(grads, state.inner, params)
        last = state.mini_step == count - 1
        updates = jax.tree.map(lambda u: jnp.where(last, u, 0), updates)
        inner_state = jax.tree.map(partial(jnp.where, last), inner_state, state.inner)
        grads = jax.tree.map(lambda g: jnp.where(last, 0, g), grads)
        return updates, AccumulationState((state.mini_step + 1) % count, grads, inner_state)

    return optax.GradientTransformation(init, update)


class LossScaleState(NamedTuple):
    """The factor on the loss, the good steps since it last changed, how many updates were skipped."""

    loss_scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    skipped: Int[Array, ""]
    inner: Any


def dynamic_loss_scale(
    inner: optax.GradientTransformation, initial: float = 2.0**15, period: int = 2000
) -> optax.GradientTransformation:
    """Undoes the loss scale, and skips an update that is not finite (Micikevicius et al. 2018, section 3.2).

    The scale halves at a skipped update and doubles after `period` good ones in a row, within [1, 2^24].
    """

    def init(params):
        good_steps, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # two: both are donated
        return LossScaleState(jnp.asarray(initial, jnp.float32), good_steps, skipped, inner.init(params))

    def update(grads, state, params=None):
        grads = jax.tree.map(lambda g: g / state.loss_scale, grads)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))
        updates, inner_state = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        inner_state = jax.tree.map(partial(jnp.where, finite), inner_state, state.inner)
        good = jnp.where(finite, state.good_steps + 1, 0)
        factor = jnp.where(finite, jnp.where(good == period, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.loss_scale * factor, 1.0, 2.0**24)
        return updates, LossScaleState(scale, good % period, state.skipped + (~finite).astype(jnp.int32), inner_state)

    return optax.GradientTransformation(init, update)


def model_loss(model: Model, objective: Any, dtype: str = "float32") -> Loss:
    """The loss of each example of a batch (`image`, `label` and `t` if any), from a key each for noise and dropout."""

    def loss(params, keys, batch):
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        options = {"labels": batch.get("label"), "dropout_keys": dropout_keys, "dtype": jnp.dtype(dtype)}
        given = {"t": batch["t"]} if "t" in batch else {}
        return objective.loss(noise_keys, lambda xt, t: model.apply(params, xt, t, **options), batch["image"], **given)

    return loss


def training_keys(seed: int) -> Key[Array, " 2"]:
    """The keys of the parameters and of the steps; folded by a name, so that they are not those of samples."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"training")))


def example_keys(key: Key[Array, ""], step: int, rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key an example: of the optimizer step and of its row in that step's global batch, and of nothing else."""
    return _example_keys(key, jnp.asarray(step, jnp.uint32), rows)


@jax.jit
def _example_keys(key, step, rows):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows)


def make_train_step(
    loss: Loss, tx: optax.GradientTransformation, ema: Ema | None = None, axis_name: str | None = None
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """The step (state, batch) -> (state, {"loss", "grad_norm"}); batch holds `image`, `label` if any, and `key`.

    With `axis_name` it runs on one share of the batch under `pmap` or `shard_map`: the gradient is
    pmean(grad(pmean(loss))), which is right under both, where either alone is wrong under one of them.

    Where `tx` keeps losses, each example's t is drawn by them here.
    """
    mean = (lambda tree: tree) if axis_name is None else partial(jax.lax.pmean, axis_name=axis_name)
    ema = ema or Ema()

    def step(state: TrainState, batch: dict[str, Array]):
        scale = optax.tree.get(state.opt_state, "loss_scale", jnp.ones(()))
        batch, weight = importance.draw(state.opt_state, batch)

        def scaled_loss(params):
            losses = loss(params, batch["key"], batch)
            value = mean(jnp.mean(weight * losses))
            return value * scale, (value, losses)

        grads, (value, losses) = jax.grad(scaled_loss, has_aux=True)(state.params)
        grads = mean(grads)
        # optax's Adam and schedules mix dtypes, which this package's own code never does.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            grad_norm = optax.tree.norm(grads) / scale
        opt_state = importance.learn(opt_state, batch, losses, mean)
        finished = optax.tree.get(opt_state, "mini_step", jnp.zeros((), jnp.int32)) == 0
        ema_params = _averages(state.ema_params, params, ema, state.step, finished)
        new_state = TrainState(state.step + finished.astype(jnp.int32), params, ema_params, opt_state)
        return new_state, {"loss": value, "grad_norm": grad_norm}

    return step


def _averages(averages: dict[str, Params], params: Params, ema: Ema, step: Array, finished: Array) -> dict[str, Params]:
    t = step.astype(jnp.float32) + 1
    rates = {name: decay_rate(decay, ema.warmup, t) for name, decay in ema.decays.items()}
    rates |= {name: power_rate(power_gamma(length), t) for name, length in ema.tracks.items()}
    check(
        set(rates) == set(averages),
        f"the state holds the averages {', '.join(averages)} and the step makes {', '.join(rates)}: "
        "give init_state and make_train_step the same ema",
    )

    def average(old, rate):
        rate = rate * finished.astype(jnp.float32)  # 0 within an accumulation: parameters have not moved
        return jax.tree.map(lambda a, p: a + rate * (p - a), old, params)

    return {name: average(old, rates[name]) for name, old in averages.items()}


def by_micro_batches(train_step: Callable, state: Any, batch: dict, count: int) -> tuple[Any, dict]:
    """The state and the mean of the metrics, on the device, after a batch in `count` micro-batches, in order."""
    size = len(batch["image"]) // count
    metrics = []
    for i in range(count):
        state, values = train_step(state, {name: x[i * size : (i + 1) * size] for name, x in batch.items()})
        metrics.append(values)
    return state, values if count == 1 else jax.tree.map(lambda *values: sum(values) / count, *metrics)
