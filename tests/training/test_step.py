"""The training step against closed forms: averages, keys, hidden conditions; nets that overfit."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.training import (
    CONV_UNET,
    SGD,
    assert_close,
    assert_same,
    linear_batch,
    linear_loss,
    linear_params,
    recipe,
    train,
)

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models import Model
from ddpm_jax.models.layers import embedding
from ddpm_jax.training.ema import Ema, power_gamma
from ddpm_jax.training.step import (
    example_keys,
    hide_conditions,
    init_state,
    make_train_step,
    model_loss,
    step_by_micro_batches,
)

# Steps


def test_loss_and_gradient_norm_are_those_of_the_batch():
    batch, params = linear_batch(), linear_params()
    states, metrics = train(SGD, [batch])
    mean_loss = lambda params: jnp.mean(linear_loss(params, batch["key"], batch))  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(metrics[0]["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(
        metrics[0]["grad_norm"], np.sqrt(sum((g**2).sum() for g in grads.values())), rtol=1e-5
    )
    assert_close(states[1].params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert int(states[1].step) == 1


@pytest.mark.parametrize("warmup", [False, True])
def test_every_average_is_its_closed_form(warmup):
    """Several at once. A power-function average gives the parameters after step s of t the weight
    (s/t)^(gamma + 1) - ((s - 1)/t)^(gamma + 1), and those before the first step none.
    """
    ema = Ema(decay=0.6, warmup=warmup, extra_decays=(0.9, 0.1), power=(0.1, 0.2))
    states, _ = train(optax.sgd(0.2), map(linear_batch, range(12)), ema=ema)
    path = np.stack([np.asarray(state.params["w"], np.float64) for state in states])
    n = np.arange(1, 13)
    wanted = {}
    for name, decay in {"ema": 0.6, "ema_0.9": 0.9, "ema_0.1": 0.1}.items():
        decays = np.minimum(decay, (1 + n) / (10 + n)) if warmup else np.full(12, decay)
        after = np.append(np.cumprod(decays[::-1])[-2::-1], 1)  # product of the later decays
        wanted[name] = np.append(np.prod(decays), (1 - decays) * after)
    for length in ema.power:
        edges = (np.arange(13) / 12) ** (power_gamma(length) + 1)
        wanted[f"power_{length}"] = np.append(0, np.diff(edges))
    assert set(states[-1].ema_params) == set(wanted)
    for name, weights in wanted.items():
        assert abs(weights.sum() - 1) < 1e-12, name
        found, average = states[-1].ema_params[name]["w"], np.tensordot(weights, path, 1)
        np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6, err_msg=name)


def test_ema_starts_as_a_copy_that_donation_does_not_share():
    params = linear_params()
    state = init_state(params, optax.sgd(0.1))
    assert_same(state.ema_params["ema"], params)
    pointers = lambda tree: {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}  # noqa: E731
    assert not pointers(state.ema_params) & pointers(state.params)


def test_a_state_without_the_averages_of_the_step_is_an_error_that_names_them():
    step = make_train_step(linear_loss, optax.sgd(0.1), Ema(power=(0.05,)))
    with pytest.raises(
        ValueError, match=r"the averages ema and the step makes ema, power_0\.05: give init_state"
    ):
        jax.eval_shape(step, init_state(linear_params(), optax.sgd(0.1)), linear_batch())


def test_placed_arrays_are_all_that_a_step_needs():
    tx = recipe(dtype="float16", optimizer={"clip_norm": 1.0, "decay": "cosine"}).make_optimizer(80)
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
    tx = config.make_optimizer(80)
    step = jax.jit(
        make_train_step(model_loss(model, config.objective, dtype), tx, config.ema),
        donate_argnums=0,
    )
    images = np.random.default_rng(0).uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
    batch = {"image": jnp.asarray(images), "key": example_keys(jax.random.key(0), 0, jnp.arange(8))}
    state, losses = init_state(model.init(jax.random.key(0)), tx), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_net_overfits_one_batch_and_keeps_float32_weights(dtype):
    losses, state = overfit(CONV_UNET, dtype)
    assert losses[-1] < 0.5 * losses[0]
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    kept = jax.tree.leaves((state.params, state.ema_params, moments))
    assert {leaf.dtype for leaf in kept} == {np.dtype("float32")}
    assert (optax.tree.get(state.opt_state, "loss_scale") is not None) == (dtype == "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Model):
    """A model that keeps what it was called with."""

    calls: list

    def apply(self, params, xt, t, condition=None, **options):
        self.calls.append((params, xt, t, condition, options))
        return xt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stub(Objective):
    """An objective with another loss."""

    function: Callable

    def loss(self, keys, network, images, t=None):
        return self.function(keys, network, images, t)


def test_model_loss_gives_noise_and_dropout_keys_of_their_own():
    """The model gets the labels of the batch, and the objective its timesteps."""
    model, seen = Recorder(image_size=4, channels=1, calls=[]), []

    def objective_loss(keys, network, images, t):
        seen.append((keys, t))
        network(images, np.arange(3))
        return jnp.zeros(3)

    keys, images = jax.random.split(jax.random.key(0), 3), np.ones((3, 4, 4, 1))
    labels, t = np.arange(3), np.arange(3)
    loss = model_loss(model, Stub(function=objective_loss), "bfloat16")
    loss("params", keys, {"image": images, "label": labels, "key": keys, "t": t})
    loss("params", keys, {"image": images, "key": keys})
    (params, xt, called_t, given, options), (*_, nothing, _) = model.calls
    assert (params, options["dtype"], nothing) == ("params", jnp.bfloat16, None)
    assert_same((xt, called_t, given), (images, np.arange(3), labels))
    assert seen[0][1] is t
    assert seen[1][1] is None
    every = [jax.random.key_data(some) for some in (keys, seen[0][0], options["dropout_keys"])]
    assert len(np.unique(np.concatenate(every), axis=0)) == 9


# Hidden conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Model):
    """xt times the embedding of its label: the smallest model with labels."""

    def module(self):
        return ScalingModule(self.label_count)


class ScalingModule(nn.Module):
    count: int

    @nn.compact
    def __call__(self, xt, t, labels, keys):
        return xt * embedding(labels, self.count, 1, "class_embedding")[:, None, None]


class Described(Scaling):
    """A model whose condition is two arrays."""

    def unconditional(self, n):
        return {"text": jnp.zeros((n, 2, 3)), "size": jnp.full(n, -1)}


HIDING = Scaling(image_size=1, channels=1, num_classes=3, label_dropout=0.25)
hide = jax.jit(hide_conditions, static_argnums=1)


def test_each_label_is_hidden_with_the_probability_of_label_dropout_by_its_own_key():
    count = 4000
    labels = jnp.asarray(np.arange(count) % 3, jnp.int32)
    keys = jax.random.split(jax.random.key(0), count)
    hidden = np.asarray(hide(keys, HIDING, labels))
    share = np.mean(hidden == -1)
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_array_equal(hidden[hidden != -1], labels[hidden != -1])
    for label in range(3):
        assert abs(np.mean(hidden[label::3] == -1) - 0.25) < 0.06, label
    # Each label goes with its key, whatever the order of the batch.
    np.testing.assert_array_equal(hide(keys[::-1], HIDING, labels[::-1]), hidden[::-1])
    assert np.any(hide(jax.random.split(jax.random.key(1), count), HIDING, labels) != hidden)


def test_all_arrays_of_a_condition_are_hidden_in_the_same_examples():
    model = Described(image_size=1, channels=1, num_classes=3, label_dropout=0.5)
    given = {"text": jnp.ones((16, 2, 3)), "size": jnp.full(16, 7)}
    hidden = jax.tree.map(np.asarray, hide(jax.random.split(jax.random.key(0), 16), model, given))
    rows = hidden["size"] == -1
    assert 0 < rows.sum() < 16
    np.testing.assert_array_equal(hidden["size"], np.where(rows, -1, 7))
    np.testing.assert_array_equal(hidden["text"], np.broadcast_to(~rows[:, None, None], (16, 2, 3)))


def test_the_gradient_of_a_hidden_label_reaches_only_the_unconditional_row():
    def network_loss(keys, network, images, t):
        return network(images, t)[:, 0, 0, 0]

    model = dataclasses.replace(HIDING, label_dropout=0.5)
    loss = model_loss(model, Stub(function=network_loss))
    images, t = jnp.ones((8, 1, 1, 1)), jnp.zeros(8, jnp.int32)
    keys, labels = jax.random.split(jax.random.key(1), 8), jnp.asarray(np.arange(8) % 2, jnp.int32)
    batch = {"image": images, "label": labels, "t": t}
    params = {"class_embedding": {"embedding": jnp.ones((4, 1))}}
    grads = jax.jit(jax.grad(lambda params: jnp.sum(loss(params, keys, batch))))(params)
    _, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    hidden = np.asarray(hide(dropout_keys, model, labels)) == -1
    assert 0 < hidden.sum() < 8
    shown = np.bincount(np.asarray(labels)[~hidden], minlength=3)
    rows = np.asarray(grads["class_embedding"]["embedding"])[:, 0]
    np.testing.assert_array_equal(rows, [*shown, hidden.sum()])


def test_example_keys_depend_on_key_step_and_row_alone():
    def data(seed, step, rows):
        keys = example_keys(jax.random.key(seed), step, jnp.asarray(rows))
        return np.asarray(jax.random.key_data(keys))

    whole = data(0, 5, range(8))
    np.testing.assert_array_equal(
        whole, np.concatenate([data(0, 5, [0, 1, 2, 3]), data(0, 5, [4, 5, 6, 7])])
    )
    np.testing.assert_array_equal(whole[::-1], data(0, 5, list(range(8))[::-1]))
    others = np.concatenate([whole, data(0, 6, range(8)), data(1, 5, range(8))])
    assert len(np.unique(others, axis=0)) == 24


def test_a_batch_goes_through_in_parts_in_order_and_its_metrics_are_the_mean():
    def step(seen, batch):
        return [*seen, batch["image"].tolist()], {"loss": np.mean(batch["image"])}

    batch = {"image": np.array([1.0, 3.0, 2.0, 8.0]), "key": np.arange(4)}
    for count in (1, 2, 4):
        seen, metrics = step_by_micro_batches(step, [], batch, count)
        assert np.concatenate(seen).tolist() == [1.0, 3.0, 2.0, 8.0]
        assert (len(seen), float(metrics["loss"])) == (count, 3.5)
