"""The training step: a pure function (state, batch) -> (state, metrics).

It works with any loss, any number of devices, and any optax optimizer whose update takes gradients,
state and parameters alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import draws
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check, check_at_least, check_rows, check_seed, check_shape, check_whole
from ddpm_jax.models import Model
from ddpm_jax.models.conditions import add_condition_noise
from ddpm_jax.training import importance
from ddpm_jax.training.augmentation import augment
from ddpm_jax.training.ema import Ema, decay_rate, power_gamma, power_rate
from ddpm_jax.training.global_norm import global_norm
from ddpm_jax.training.loss_bands import sum_by_band
from ddpm_jax.training.opt_state import get_field
from ddpm_jax.training.small_arrays import with_small_joined

Params = Any
"""Any pytree of float32 arrays."""
Loss = Callable[..., Float[Array, " b"]]
"""(params, keys (b,), batch, *frozen) -> losses (b,)."""


class TrainState(NamedTuple):
    """Everything that changes in training, as arrays only.

    `step` counts optimizer steps, skipped updates included, because the batch depends on it.
    `ema_params` is {name: params}. Accumulators, counters and the loss scale are in `opt_state`.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: dict[str, Params]
    opt_state: Any


def init_state(
    params: Params, tx: optax.GradientTransformation, ema: Ema | None = None
) -> TrainState:
    """The state before the first step, with averages equal to the parameters."""
    ema = ema or Ema()
    names = (*ema.decays, *ema.power_averages)
    # Copies, because a training step donates both.
    averages = {name: jax.tree.map(jnp.copy, params) for name in names}
    return TrainState(jnp.zeros((), jnp.int32), params, averages, tx.init(params))


def model_loss(model: Model, objective: Objective, dtype: Any = "float32") -> Loss:
    """Make the loss (params, keys, batch) -> losses (b,) of a model and an objective.

    A batch holds `image`, optionally `t`, and the arrays of the condition (`Model.condition_of`).
    Each key gives one for noise and one for dropout. Conditions are dropped with probability
    `model.label_dropout`. The loss raises ValueError for an objective that draws timesteps by
    importance if the batch has no `t`, which the training step adds by the history of losses.
    """

    def loss(params, keys, batch):
        check(
            objective.timestep_sampling != "importance" or "t" in batch,
            "Timesteps by importance need a history of losses: make the optimizer by "
            "make_optimizer with importance_timesteps, or give each batch its t.",
        )
        noise_keys = _noise_keys(keys)
        dropout_keys = draws.fold_in(keys, 1)
        images = batch["image"]
        condition = model.condition_of(batch)
        if model.label_dropout and condition is not None:
            condition = hide_conditions(dropout_keys, model, condition)
        if model.condition_noise:
            level = draws.uniform(draws.fold_in_name(keys, "condition noise"))
            condition = add_condition_noise(keys, condition, level * model.condition_noise)
        if model.augmentation:
            own = draws.fold_in_name(keys, "augmentation")
            images, numbers = augment(
                own, images, model.augmentation, model.augmentation_probability
            )
            condition = condition | {"augmentation": numbers}

        def network(xt, t):
            options = {"dropout_keys": dropout_keys, "dtype": jnp.dtype(dtype)}
            return model.apply(params, xt, t, condition, **options)

        return objective.loss(noise_keys, network, images, batch.get("t"))

    return loss


def _noise_keys(keys):
    return draws.fold_in(keys, 0)


def hide_conditions(keys: Key[Array, " b"], model: Model, condition: Any) -> Any:
    """Make each example's condition the unconditional one with probability `label_dropout`."""
    check_rows(len(keys), condition=condition)
    hidden = draws.uniform(draws.fold_in_name(keys, "labels")) < model.label_dropout  # (b,)

    def hide(conditional, unconditional):
        is_hidden = hidden.reshape(-1, *[1] * (conditional.ndim - 1))  # (b, 1, ...)
        return jnp.where(is_hidden, unconditional, conditional)

    return jax.tree.map(hide, condition, model.unconditional(keys.shape[0]))


def training_keys(seed: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The key of the parameters and the key of the steps.

    Raise ValueError for a seed outside [0, 2**32).
    """
    check_seed(seed)
    # The name keeps them different from the keys of samples with the same seed.
    key = draws.fold_in_name(draws.make_key(seed), "training")
    return draws.fold_in(key, 0), draws.fold_in(key, 1)


def example_keys(key: Key[Array, ""], step: int, rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key per example, from the optimizer step and the example's row in the global batch.

    Raise ValueError unless `key` is one key, of an implementation that `draws` accepts, and for a
    negative step.
    """
    check_whole(step=step)
    check_at_least(0, step=step)
    draws.check_typed(key)
    check(key.shape == (), f"example_keys takes one key, not keys of shape {key.shape}.")
    return _example_keys(key, jnp.asarray(step, jnp.uint32), rows)


@jax.jit
def _example_keys(key, step, rows):
    return draws.fold_in_each(draws.fold_in(key, step), rows)


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    ema: Ema | None = None,
    axis_name: str | None = None,
    objective: Objective | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Make the step (state, batch, *frozen) -> (state, {"loss", "grad_norm"}).

    A batch holds `image`, `key` and optionally `label`. With `axis_name`, the step runs on one
    shard of the batch under `pmap` or `shard_map`. The gradient is pmean(grad(pmean(loss))), which
    is right under both; with only one of these means it would be wrong under `pmap` or `shard_map`.
    `frozen` are further arguments of the loss that are not trained, such as those of `lora_loss`.

    With the `objective` of `model_loss`, the metrics also hold "loss_bands", the losses by bands of
    t as `loss_bands.sum_by_band` gives them. Nothing else changes.

    With a loss history in `tx`, timesteps are importance-sampled. With `skip_nonfinite` in `tx`, a
    non-finite loss makes the gradient NaN, and a skipped update leaves the averages as they are.
    The step raises ValueError unless the batch and the loss have one row per key.
    """
    ema = ema or Ema()
    mean = partial(_mean, axis_name)

    def step(state: TrainState, batch: dict[str, Array], *frozen: Params):
        num_images = len(batch["key"])
        check_rows(num_images, **batch)
        scale = get_field(state.opt_state, "loss_scale", jnp.ones((), jnp.float32))
        batch, weight = importance.sample_timesteps(state.opt_state, batch)
        if objective is not None and "t" not in batch:
            batch = batch | {"t": objective.draw_timesteps(_noise_keys(batch["key"]))}

        def scaled_loss(params):
            losses = loss(params, batch["key"], batch, *frozen)
            check_shape((num_images,), loss=losses)
            value = mean(jnp.mean(weight * losses))
            return value * jnp.where(jnp.isfinite(value), scale, jnp.nan), (value, losses)

        grads, (value, losses) = jax.grad(scaled_loss, has_aux=True)(state.params)
        if axis_name is not None:
            # Without an axis, the arrays may be sharded: XLA would gather them for this.
            grads = with_small_joined(lambda tree: in_layout_of_parameters(mean(tree)), grads)
        # optax's Adam and schedules mix dtypes, which this package's own code never does.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            grad_norm = global_norm(grads) / scale
        opt_state = importance.update_history(opt_state, batch, losses, mean)
        finished = get_field(opt_state, "mini_step", jnp.zeros((), jnp.int32)) == 0
        finite = get_field(opt_state, "skipped_in_a_row", jnp.zeros((), jnp.int32)) == 0
        ema_params = _averages(state.ema_params, params, ema, state.step, finished & finite)
        next_step = state.step + finished.astype(jnp.int32)
        new_state = TrainState(next_step, params, ema_params, opt_state)
        metrics = {"loss": value, "grad_norm": grad_norm}
        if objective is not None:
            bands = sum_by_band(batch["t"], losses, weight, objective.timesteps)
            metrics |= {"loss_bands": mean(bands)}
        return new_state, metrics

    return step


def _mean(axis_name: str | None, tree: Any) -> Any:
    """Average over the devices of an axis. Without an axis, or with one device, change nothing."""
    if axis_name is None or jax.lax.axis_size(axis_name) == 1:
        return tree
    return jax.lax.pmean(tree, axis_name)


def in_layout_of_parameters(grads: Params) -> Params:
    """Have a GPU write the gradients, with the layout that the parameters have.

    cuDNN writes the gradients of convolutions in another one. XLA would compute the new state in
    that and copy it, in about 200 of the 2,278 kernels of cifar10 (docs/chips.md).
    """
    return jax.lax.platform_dependent(grads, cuda=written_by_rows, default=lambda tree: tree)


def written_by_rows(tree: Params) -> Params:
    """The arrays of a tree, each written to memory with its last axis contiguous."""

    def by_rows(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    return jax.lax.optimization_barrier(jax.tree.map(by_rows, tree))


def _averages(
    averages: dict[str, Params], params: Params, ema: Ema, step: Array, updated: Array
) -> dict[str, Params]:
    """Move the averages towards `params` if the parameters were updated."""
    t = step.astype(jnp.float32) + 1
    rates = {name: decay_rate(decay, ema.warmup, t) for name, decay in ema.decays.items()}
    for name, length in ema.power_averages.items():
        rates[name] = power_rate(power_gamma(length), t)
    check(
        set(rates) == set(averages),
        f"The state holds the averages {', '.join(averages)} and the step makes "
        f"{', '.join(rates)}: give init_state and make_train_step the same ema.",
    )

    def average(old, rate):
        rate = rate * updated.astype(jnp.float32)
        return jax.tree.map(lambda a, p: a + rate * (p - a), old, params)

    return {name: average(old, rates[name]) for name, old in averages.items()}


def micro_batches(batch: dict, n: int) -> Iterator[dict]:
    """Split a batch into `n` equal micro-batches, in order.

    Raise ValueError unless n divides the batch.
    """
    check_whole(n=n)
    check_at_least(1, n=n)
    size, rest = divmod(len(batch["image"]), n)
    check(rest == 0, f"A batch of {size * n + rest} does not divide into {n} micro-batches.")
    for i in range(n):
        yield {name: x[i * size : (i + 1) * size] for name, x in batch.items()}


def step_by_micro_batches(
    train_step: Callable, state: Any, batch: dict, n: int
) -> tuple[Any, dict]:
    """Run `train_step` on `n` micro-batches of a batch. Return the state and the mean metrics.

    The metrics stay on the device.
    """
    metrics = []
    for micro_batch in micro_batches(batch, n):
        state, values = train_step(state, micro_batch)
        metrics.append(values)
    if n == 1:
        return state, values
    return state, jax.tree.map(lambda *values: sum(values) / n, *metrics)
