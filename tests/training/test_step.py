"""The training step against closed forms: averages, keys; nets that overfit."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import (
    CONV_UNET,
    assert_close,
    assert_same,
    linear_batch,
    linear_loss,
    linear_params,
    recipe,
    train,
)

from ddpm_jax.models import Model
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema, power_gamma
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.step import by_micro_batches, example_keys, init_state, make_train_step, model_loss

UNET = UNet(image_size=4, channels=1, widths=(8,), attention=(False,), layers_per_level=1, groups=4)


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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_batch_goes_through_in_parts_in_order_and_its_metrics_are_the_mean(count):
    def step(seen, batch):
        return [*seen, batch["image"].tolist()], {"loss": jnp.mean(batch["image"])}

    batch = {"image": jnp.array([1.0, 3.0, 2.0, 8.0]), "key": jnp.arange(4)}
    seen, metrics = by_micro_batches(step, [], batch, count)
    assert np.concatenate(seen).tolist() == [1.0, 3.0, 2.0, 8.0]
    assert (len(seen), float(metrics["loss"])) == (count, 3.5)
