"""The training step: a pure function (state, batch) -> (state, metrics), for any loss, optimizer and device count."""

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.models import Model, Params
from ddpm_jax.training import importance
from ddpm_jax.training.ema import Ema, decay_rate, power_gamma, power_rate

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


def init_state(
    params: Params, tx: optax.GradientTransformation, ema: Ema | None = None
) -> TrainState:
    """The state before the first step; the averages start as copies of the parameters, because steps donate both."""
    ema = ema or Ema()
    averages = {name: jax.tree.map(jnp.copy, params) for name in (*ema.decays, *ema.power_averages)}
    return TrainState(jnp.zeros((), jnp.int32), params, averages, tx.init(params))


def model_loss(model: Model, objective: Objective, dtype: str = "float32") -> Loss:
    """The loss of each example of a batch (`image`, `label` and `t` if any), from a key each for noise and dropout.

    Conditions are hidden here, with probability `model.label_dropout`.
    """

    def loss(params, keys, batch):
        noise_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        condition = batch.get("label")
        if model.label_dropout and condition is not None:
            condition = hide_conditions(dropout_keys, model, condition)

        def network(xt, t):
            options = {"dropout_keys": dropout_keys, "dtype": jnp.dtype(dtype)}
            return model.apply(params, xt, t, condition, **options)

        return objective.loss(noise_keys, network, batch["image"], batch.get("t"))

    return loss


def hide_conditions(keys: Key[Array, " b"], model: Model, condition: Any) -> Any:
    """Replace the condition of each example by the unconditional one with probability `label_dropout`."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(b"labels"))
    hidden = jax.vmap(jax.random.uniform)(keys) < model.label_dropout  # (b,)

    def hide(given, unconditional):
        return jnp.where(hidden.reshape(-1, *[1] * (given.ndim - 1)), unconditional, given)

    return jax.tree.map(hide, condition, model.unconditional(len(keys)))


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
    loss: Loss,
    tx: optax.GradientTransformation,
    ema: Ema | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """The step (state, batch) -> (state, {"loss", "grad_norm"}); batch holds `image`, `label` if any, and `key`.

    With `axis_name` it runs on one share of the batch under `pmap` or `shard_map`: the gradient is
    pmean(grad(pmean(loss))), which is right under both, where either alone is wrong under one of them.

    Where `tx` keeps losses, each example's t is drawn by them here. Where it skips updates that are not finite, a loss
    that is not finite makes the gradient so, and averages stay as they are.
    """
    ema = ema or Ema()
    mean = partial(_mean, axis_name)

    def step(state: TrainState, batch: dict[str, Array]):
        scale = optax.tree.get(state.opt_state, "loss_scale", jnp.ones(()))
        batch, weight = importance.sample_timesteps(state.opt_state, batch)

        def scaled_loss(params):
            losses = loss(params, batch["key"], batch)
            value = mean(jnp.mean(weight * losses))
            return value * jnp.where(jnp.isfinite(value), scale, jnp.nan), (value, losses)

        grads, (value, losses) = jax.grad(scaled_loss, has_aux=True)(state.params)
        grads = mean(grads)
        # optax's Adam and schedules mix dtypes, which this package's own code never does.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            grad_norm = optax.tree.norm(grads) / scale
        opt_state = importance.update_history(opt_state, batch, losses, mean)
        finished = optax.tree.get(opt_state, "mini_step", jnp.zeros((), jnp.int32)) == 0
        good = optax.tree.get(opt_state, "skipped_in_a_row", jnp.zeros((), jnp.int32)) == 0
        ema_params = _averages(state.ema_params, params, ema, state.step, finished & good)
        new_state = TrainState(
            state.step + finished.astype(jnp.int32), params, ema_params, opt_state
        )
        return new_state, {"loss": value, "grad_norm": grad_norm}

    return step


def _mean(axis_name: str | None, tree: Any) -> Any:
    """Over the devices of an axis; the tree itself where there is no other."""
    alone = axis_name is None or jax.lax.axis_size(axis_name) == 1
    return tree if alone else jax.lax.pmean(tree, axis_name)


def _averages(
    averages: dict[str, Params], params: Params, ema: Ema, step: Array, moved: Array
) -> dict[str, Params]:
    t = step.astype(jnp.float32) + 1
    rates = {name: decay_rate(decay, ema.warmup, t) for name, decay in ema.decays.items()}
    rates |= {
        name: power_rate(power_gamma(length), t) for name, length in ema.power_averages.items()
    }
    check(
        set(rates) == set(averages),
        f"the state holds the averages {', '.join(averages)} and the step makes {', '.join(rates)}: "
        "give init_state and make_train_step the same ema",
    )

    def average(old, rate):
        rate = rate * moved.astype(jnp.float32)
        return jax.tree.map(lambda a, p: a + rate * (p - a), old, params)

    return {name: average(old, rates[name]) for name, old in averages.items()}


def micro_batches(batch: dict, count: int) -> Iterator[dict]:
    """The batch in `count` equal parts, in order."""
    size = len(batch["image"]) // count
    return ({name: x[i * size : (i + 1) * size] for name, x in batch.items()} for i in range(count))


def step_by_micro_batches(
    train_step: Callable, state: Any, batch: dict, count: int
) -> tuple[Any, dict]:
    """The state and the mean of the metrics, on the device, after a batch in `count` micro-batches, in order."""
    metrics = []
    for part in micro_batches(batch, count):
        state, values = train_step(state, part)
        metrics.append(values)
    return state, values if count == 1 else jax.tree.map(
        lambda *values: sum(values) / count, *metrics
    )
