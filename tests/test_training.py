"""The training step against closed forms: learning rates, averages, accumulation, loss scale, clipping, keys."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.config import Config, Ema, Optimizer, Training
from ddpm_jax.data.digits import Digits
from ddpm_jax.ema import power_gamma
from ddpm_jax.models import Model
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.training import (
    dynamic_loss_scale,
    example_keys,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    model_loss,
)

CONV_UNET = ConvUNet(image_size=4, channels=1, widths=(8,), time_embedding_dim=8, groups=4)
UNET = UNet(image_size=4, channels=1, widths=(8,), attention=(False,), layers_per_level=1, groups=4)


def recipe(*, model=CONV_UNET, optimizer=None, **training) -> Config:
    """A recipe of 8 images a step."""
    training = Training(**{"batch_size": 8, "steps": 10} | training)
    return Config(model=model, data=Digits(), training=training, optimizer=Optimizer(**optimizer or {}))


def linear_loss(params, keys, batch):
    """A linear regression with noise of each example's key: small, and its gradient is known."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    wanted = batch["image"][:, 0, 0, :3] * 2 + 0.1 * noise
    return jnp.mean((batch["image"][:, 0, 0] @ params["w"] + params["b"][None] - wanted) ** 2, -1)


def linear_params():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.standard_normal((4, 3), np.float32)), "b": jnp.ones(3)}


def linear_batch(step=0, count=8):
    """Images of 1x1 pixel with 4 channels, and keys."""
    images = np.random.default_rng(step).standard_normal((count, 1, 1, 4), np.float32)
    return {"image": jnp.asarray(images), "key": example_keys(jax.random.key(0), step, jnp.arange(count))}


def train(tx, batches, *, ema=None, params=None):
    """The states before and after each step on `batches`, and the metrics."""
    step = jax.jit(make_train_step(linear_loss, tx, ema))
    states, metrics = [init_state(params or linear_params(), tx, ema)], []
    for batch in batches:
        state, metric = step(states[-1], batch)
        states.append(state)
        metrics.append(metric)
    return states, metrics


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


# Learning rate


def rates(total_steps=100, steps_per_epoch=10, count=None, **settings):
    rate = learning_rate(Optimizer(**settings), total_steps, steps_per_epoch)
    return np.asarray(jax.vmap(rate)(jnp.arange(total_steps if count is None else count)))


def test_a_constant_rate_is_constant():
    np.testing.assert_allclose(rates(learning_rate=3e-4), 3e-4, rtol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "cosine", "epoch_cosine"])
def test_warmup_rises_from_zero_in_a_straight_line(decay):
    found = rates(learning_rate=1e-3, decay=decay, warmup_steps=20)
    np.testing.assert_allclose(found[:20], 1e-3 * np.arange(20) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_falls_along_half_a_wave_to_the_floor_and_stays(warmup):
    found = rates(learning_rate=1e-3, decay="cosine", floor=1e-5, warmup_steps=warmup, count=150)
    share = np.minimum((np.arange(warmup, 150) - warmup) / (100 - warmup), 1)
    np.testing.assert_allclose(found[warmup:], 1e-5 + 99e-5 * (1 + np.cos(np.pi * share)) / 2, rtol=1e-4)
    np.testing.assert_allclose(found[100:], 1e-5, rtol=1e-4)


def test_epoch_cosine_is_pytorchs_cosine_annealing_stepped_once_an_epoch():
    """CosineAnnealingLR(T_max=epochs, eta_min=floor): eta_min + (lr - eta_min) (1 + cos(pi epoch / T_max)) / 2."""
    found = rates(total_steps=7 * 13, steps_per_epoch=13, learning_rate=2e-3, decay="epoch_cosine", floor=1e-5)
    epoch = np.repeat(np.arange(7), 13)
    np.testing.assert_allclose(found, 1e-5 + (2e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 7)) / 2, rtol=1e-5)


# Steps


def test_loss_and_gradient_norm_are_those_of_the_batch():
    batch, params = linear_batch(), linear_params()
    states, metrics = train(optax.sgd(0.1), [batch])
    value, grads = jax.value_and_grad(lambda p: jnp.mean(linear_loss(p, batch["key"], batch)))(params)
    np.testing.assert_allclose(metrics[0]["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics[0]["grad_norm"], np.sqrt(sum((g**2).sum() for g in grads.values())), rtol=1e-5)
    assert_close(states[1].params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert int(states[1].step) == 1


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_its_closed_form(warmup):
    states, _ = train(optax.sgd(0.2), map(linear_batch, range(12)), ema=Ema(decay=0.6, warmup=warmup))
    n = np.arange(1, 13)
    decays = np.minimum(0.6, (1 + n) / (10 + n)) if warmup else np.full(12, 0.6)
    weights = (1 - decays) * np.append(np.cumprod(decays[::-1])[-2::-1], 1)  # of the parameters after each step
    start = np.prod(decays)
    path = np.stack([np.asarray(state.params["w"], np.float64) for state in states])
    wanted = start * path[0] + np.tensordot(weights, path[1:], 1)
    assert abs(start + weights.sum() - 1) < 1e-12
    np.testing.assert_allclose(states[-1].ema_params["ema"]["w"], wanted, rtol=1e-5, atol=1e-6)
    assert warmup == bool(decays[0] < 0.5)


def test_ema_starts_as_a_copy_that_donation_does_not_share():
    params = linear_params()
    state = init_state(params, optax.sgd(0.1))
    assert_same(state.ema_params["ema"], params)
    pointers = lambda tree: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}  # noqa: E731
    assert not pointers(state.ema_params) & pointers(state.params)


def test_several_averages_at_once_are_each_what_it_is_alone():
    batches = [linear_batch(step) for step in range(12)]
    together = train(optax.sgd(0.2), batches, ema=Ema(decay=0.6, others=(0.9, 0.1), power=(0.1, 0.05)))[0][-1]
    wanted = {"ema": Ema(decay=0.6), "ema_0.9": Ema(decay=0.9), "ema_0.1": Ema(decay=0.1)}
    wanted |= {f"power_{length}": Ema(power=(length,)) for length in (0.1, 0.05)}
    assert set(together.ema_params) == set(wanted)
    for name, settings in wanted.items():
        alone = train(optax.sgd(0.2), batches, ema=settings)[0][-1].ema_params
        assert_same(together.ema_params[name], alone[name if settings.power else "ema"])


def test_a_power_function_average_is_its_closed_form():
    """The parameters after step s of t weigh (s/t)^(gamma + 1) - ((s - 1)/t)^(gamma + 1), those before it nothing."""
    states, _ = train(optax.sgd(0.2), map(linear_batch, range(12)), ema=Ema(power=(0.2,)))
    edges = (np.arange(13) / 12) ** (power_gamma(0.2) + 1)
    wanted = np.tensordot(np.diff(edges), np.stack([np.asarray(state.params["w"]) for state in states[1:]]), 1)
    np.testing.assert_allclose(states[-1].ema_params["power_0.2"]["w"], wanted, rtol=1e-5, atol=1e-6)


def test_a_state_without_the_averages_of_the_step_is_an_error_that_names_them():
    step = make_train_step(linear_loss, optax.sgd(0.1), Ema(power=(0.05,)))
    with pytest.raises(ValueError, match=r"the averages ema and the step makes ema, power_0\.05: give init_state"):
        step(init_state(linear_params(), optax.sgd(0.1)), linear_batch())


@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_micro_batches_are_one_step_on_the_whole_batch(count):
    whole = [linear_batch(step) for step in range(3)]
    rows = [slice(i * 8 // count, (i + 1) * 8 // count) for i in range(count)]
    micro = [jax.tree.map(lambda x, r=r: x[r], batch) for batch in whole for r in rows]
    ema = Ema(decay=0.5, others=(0.9,), power=(0.1,))
    wanted, _ = train(optax.sgd(0.1), whole, ema=ema)
    states, _ = train(optax.MultiSteps(optax.sgd(0.1), count).gradient_transformation(), micro, ema=ema)
    for i, state in enumerate(states):
        same = wanted[i // count]
        assert int(state.step) == i // count
        assert_close((state.params, state.ema_params), (same.params, same.ema_params))
    for start in range(0, 3 * count, count):
        within = states[start : start + count]
        for state in within[1:]:
            assert_same((state.params, state.ema_params), (within[0].params, within[0].ema_params))


def test_a_recipes_accumulation_counts_optimizer_steps():
    tx = make_optimizer(recipe(accumulation=4, optimizer={"warmup_steps": 2}), images=80)
    states, _ = train(tx, [linear_batch(step, 2) for step in range(8)])
    assert [int(state.step) for state in states] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert_same(states[4].params, states[0].params)  # the first rate of the warm-up is 0
    assert np.abs(states[8].params["w"] - states[0].params["w"]).max() > 0


def test_placed_arrays_are_all_that_a_step_needs():
    tx = make_optimizer(recipe(dtype="float16", optimizer={"clip_norm": 1.0, "decay": "cosine"}), images=80)
    step = jax.jit(make_train_step(linear_loss, tx), donate_argnums=0)
    state, batch = jax.device_put((init_state(linear_params(), tx), linear_batch()))
    state, _ = step(state, batch)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, metrics = step(state, batch)
    assert int(state.step) == 3
    assert np.isfinite(metrics["loss"])


# Optimizer


def test_adamw_decays_weights_and_adam_does_not():
    zero_grads, params = jax.tree.map(jnp.zeros_like, linear_params()), linear_params()
    for name, factor in (("adam", 1.0), ("adamw", 1 - 0.01 * 0.3)):
        settings = {"name": name, "learning_rate": 0.01, "weight_decay": 0.3}
        tx = make_optimizer(recipe(optimizer=settings), images=80)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = tx.update(zero_grads, tx.init(params), params)
        assert_close(optax.apply_updates(params, updates), jax.tree.map(lambda p, f=factor: p * f, params))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients_are_clipped_to_the_global_norm_after_the_loss_scale_is_undone(dtype):
    """Adam's first moment after one step is 0.1 times the gradient that it saw."""
    means = {}
    for clip_norm in (None, 1e-3, 1e3):
        tx = make_optimizer(recipe(dtype=dtype, optimizer={"clip_norm": clip_norm}), images=80)
        states, metrics = train(tx, [linear_batch()])
        means[clip_norm] = optax.tree.get(states[1].opt_state, "mu")
        norm = float(metrics[0]["grad_norm"])
    assert 1e-2 < norm < 1e2
    assert_close(means[1e3], means[None])
    np.testing.assert_allclose(optax.tree.norm(means[None]), 0.1 * norm, rtol=1e-4)
    assert_close(means[1e-3], jax.tree.map(lambda m: m * (1e-3 / norm), means[None]), rtol=1e-4, atol=1e-9)


def overflowing(batch):
    """The batch with one image at infinity."""
    return batch | {"image": batch["image"].at[0].set(jnp.inf)}


def scales(states):
    return [float(optax.tree.get(state.opt_state, "loss_scale")) for state in states]


def test_an_overflow_halves_the_loss_scale_and_skips_the_update_but_not_the_step():
    tx = dynamic_loss_scale(optax.adam(0.1))
    states, _ = train(tx, [linear_batch(0), overflowing(linear_batch(1)), linear_batch(2)])
    before, after = states[1:3]
    assert scales(states) == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
    assert_same((before.params, before.opt_state.inner), (after.params, after.opt_state.inner))
    assert [int(state.opt_state.skipped) for state in states] == [0, 0, 1, 1]
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    assert np.abs(states[3].params["w"] - after.params["w"]).max() > 0.01


def test_the_loss_scale_doubles_after_a_period_of_good_steps_in_a_row():
    tx = dynamic_loss_scale(optax.sgd(0.01), initial=8.0, period=3)
    batches = [linear_batch(step) for step in range(12)]
    batches[7] = overflowing(batches[7])
    assert scales(train(tx, batches)[0]) == [8, 8, 8, 16, 16, 16, 32, 32, 16, 16, 16, 32, 32]


def test_the_loss_scale_stays_within_its_bounds():
    good, bad = linear_batch(), overflowing(linear_batch())
    assert scales(train(dynamic_loss_scale(optax.sgd(0.0), 2.0), [bad] * 3)[0]) == [2, 1, 1, 1]
    assert scales(train(dynamic_loss_scale(optax.sgd(0.0), 2.0**23, 1), [good] * 3)[0]) == [2**23, 2**24, 2**24, 2**24]


def test_the_loss_scale_changes_neither_steps_nor_metrics():
    batches = [linear_batch(step) for step in range(3)]
    (plain, metrics), (scaled, scaled_metrics) = (
        train(optax.sgd(0.1), batches),
        train(dynamic_loss_scale(optax.sgd(0.1)), batches),
    )
    assert_close(plain[-1].params, scaled[-1].params)
    assert_close(metrics, scaled_metrics)


def test_accumulation_recovers_from_an_overflow():
    """The micro-batches of an overflow are thrown away with it, and the next optimizer step is a good one."""
    tx = make_optimizer(recipe(dtype="float16", accumulation=2), images=80)
    batches = [linear_batch(step, 4) for step in range(6)]
    batches[2] = overflowing(batches[2])
    states, _ = train(tx, batches)
    assert scales(states) == [2.0**15] * 4 + [2.0**14] * 3
    assert [int(state.step) for state in states] == [0, 0, 1, 1, 2, 2, 3]
    assert_same(states[4].params, states[2].params)
    assert np.abs(states[6].params["w"] - states[4].params["w"]).max() > 0
    assert np.isfinite(states[6].params["w"]).all()


# Networks


def overfit(model, dtype, steps=40):
    """The losses of `steps` steps on one batch of images, noise and timesteps, and the last state."""
    config = recipe(model=model, dtype=dtype, optimizer={"learning_rate": 1e-2})
    tx = make_optimizer(config, images=80)
    step = jax.jit(make_train_step(model_loss(model, config.objective, dtype), tx, config.ema), donate_argnums=0)
    images = np.random.default_rng(0).uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "key": example_keys(jax.random.key(0), 0, jnp.arange(8))}
    state, losses = init_state(model.init(jax.random.key(0)), tx), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize(("model", "dtype"), [(UNET, "float32"), (CONV_UNET, "bfloat16"), (CONV_UNET, "float16")])
def test_a_net_overfits_one_batch_and_keeps_float32_weights(model, dtype):
    losses, state = overfit(model, dtype)
    assert losses[-1] < 0.5 * losses[0]
    if model is UNET:  # it starts at 0, so it is wrong by the noise itself
        assert abs(losses[0] - 1) < 5 * np.sqrt(2 / (8 * 16))
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    kept = jax.tree.leaves((state.params, state.ema_params, moments))
    assert {leaf.dtype for leaf in kept} == {np.dtype("float32")}
    assert (optax.tree.get(state.opt_state, "loss_scale") is not None) == (dtype == "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Model):
    """A model that keeps what it was called with."""

    calls: list

    def apply(self, params, xt, t, labels=None, **options):
        self.calls.append((params, xt, t, labels, options))
        return xt


def test_model_loss_gives_noise_and_dropout_keys_of_their_own():
    model, seen = Recorder(image_size=4, channels=1, calls=[]), []

    def objective_loss(keys, network, images):
        seen.append(keys)
        network(images, jnp.arange(3))
        return jnp.zeros(3)

    keys, images, labels = jax.random.split(jax.random.key(0), 3), jnp.ones((3, 4, 4, 1)), jnp.arange(3)
    loss = model_loss(model, SimpleNamespace(loss=objective_loss), "bfloat16")
    loss("params", keys, {"image": images, "label": labels, "key": keys})
    loss("params", keys, {"image": images, "key": keys})
    (params, xt, t, given, options), (*_, nothing, _) = model.calls
    assert (params, options["dtype"], nothing) == ("params", jnp.bfloat16, None)
    assert_same((xt, t, given), (images, jnp.arange(3), labels))
    every = [jax.random.key_data(some) for some in (keys, seen[0], options["dropout_keys"])]
    assert len(np.unique(np.concatenate(every), axis=0)) == 9


def test_example_keys_depend_on_key_step_and_row_alone():
    data = lambda seed, step, rows: np.asarray(  # noqa: E731
        jax.random.key_data(example_keys(jax.random.key(seed), step, jnp.asarray(rows)))
    )
    whole = data(0, 5, range(8))
    np.testing.assert_array_equal(whole, np.concatenate([data(0, 5, [0, 1, 2, 3]), data(0, 5, [4, 5, 6, 7])]))
    np.testing.assert_array_equal(whole[::-1], data(0, 5, list(range(8))[::-1]))
    others = np.concatenate([whole, data(0, 6, range(8)), data(1, 5, range(8))])
    assert len(np.unique(others, axis=0)) == 24
