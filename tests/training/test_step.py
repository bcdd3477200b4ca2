"""The training step against closed forms: averages, keys, hidden conditions, overfitting."""

import collections
import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from helpers.meshes import EXPLICIT, ROWS, split
from helpers.nets import SMALLEST
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE
from helpers.training import (
    SGD,
    assert_close,
    assert_same,
    linear_batch,
    linear_loss,
    linear_params,
    recipe,
    train,
)

from ddpm_jax.diffusion.losses import simple_loss
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models import Model
from ddpm_jax.models.kernels.winograd import conv3x3
from ddpm_jax.models.layers import conv, embedding
from ddpm_jax.training.ema import Ema, power_gamma
from ddpm_jax.training.optimizer import Optimizer, make_optimizer
from ddpm_jax.training.step import (
    example_keys,
    hide_conditions,
    in_layout_of_parameters,
    init_state,
    make_train_step,
    micro_batches,
    model_loss,
    step_by_micro_batches,
    training_keys,
    written_by_rows,
)

# Steps


def test_a_step_follows_the_gradient_and_reports_its_norm_and_the_loss():
    batch = linear_batch()
    params = linear_params()
    states, metrics = train(SGD, [batch])
    mean_loss = lambda params: jnp.mean(linear_loss(params, batch["key"], batch))  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    np.testing.assert_allclose(metrics[0]["loss"], value, rtol=1e-6)
    grad_norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    np.testing.assert_allclose(metrics[0]["grad_norm"], grad_norm, rtol=1e-5)
    assert_close(states[1].params, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert int(states[1].step) == 1


def test_parameters_may_have_the_names_of_the_optimizers_fields():
    """They were taken for the loss scale and for the number of micro-batches."""
    names = ("loss_scale", "mini_step", "skipped", "count")
    params = {name: jnp.ones(()) for name in names}
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(params, keys, batch):
        return sum(params.values()) ** 2 + jnp.zeros(len(keys))

    for tx in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1)):
        step = jax.jit(make_train_step(loss, tx))
        state, metrics = step(init_state(params, tx), {"key": keys})
        np.testing.assert_allclose(metrics["grad_norm"], 8 * 4**0.5, rtol=1e-6)
        assert all(x < 1 for x in state.params.values())
        assert int(state.step) == 1


@pytest.mark.parametrize("warmup", [False, True])
def test_every_average_is_its_closed_form(warmup):
    """Several averages are tracked at once.

    A power-function average weighs the parameters after step s of t by
    (s/t)^(gamma + 1) - ((s - 1)/t)^(gamma + 1), and the initial parameters by 0.
    """
    ema = Ema(decay=0.6, warmup=warmup, extra_decays=(0.9, 0.1), power=(0.1, 0.2))
    states, _ = train(optax.sgd(0.2), map(linear_batch, range(12)), ema=ema)
    path = np.stack([np.asarray(state.params["w"], np.float64) for state in states])
    n = np.arange(1, 13)
    weights_of = {}
    for name, decay in {"ema": 0.6, "ema_0.9": 0.9, "ema_0.1": 0.1}.items():
        decays = np.minimum(decay, (1 + n) / (10 + n)) if warmup else np.full(12, decay)
        later_decays = np.append(np.cumprod(decays[::-1])[-2::-1], 1)  # product after each step
        weights_of[name] = np.append(np.prod(decays), (1 - decays) * later_decays)
    for length in ema.power:
        edges = (np.arange(13) / 12) ** (power_gamma(length) + 1)
        weights_of[f"power_{length}"] = np.append(0, np.diff(edges))
    assert set(states[-1].ema_params) == set(weights_of)
    for name, weights in weights_of.items():
        assert abs(weights.sum() - 1) < 1e-12, name
        average = states[-1].ema_params[name]["w"]
        expected = np.tensordot(weights, path, 1)
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_averages_start_as_copies_that_share_no_buffer():
    params = linear_params()
    state = init_state(params, optax.sgd(0.1))
    assert_same(state.ema_params["ema"], params)

    def pointers(tree):
        return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

    assert not pointers(state.ema_params) & pointers(state.params)


def test_a_state_with_other_averages_than_the_step_is_refused():
    step = make_train_step(linear_loss, optax.sgd(0.1), Ema(power=(0.05,)))
    state = init_state(linear_params(), optax.sgd(0.1))
    message = r"the averages ema and the step makes ema, power_0\.05: give init_state"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, state, linear_batch())


def test_a_step_transfers_nothing_from_the_host():
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoConvolutions(Model):
    """A network that compiles fast."""

    def module(self):
        return TwoConvolutionsModule(self.channels)


class TwoConvolutionsModule(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, xt, t, labels, keys):
        h = nn.silu(conv(xt, 16, 3, "conv_in", init="torch"))  # (b, h, w, 16)
        return conv(h, self.channels, 3, "conv_out", init="torch")


def overfit(model, dtype, steps=40):
    """Train `steps` steps on one batch with the same keys. Return the losses and the last state."""
    config = recipe(model=model, dtype=dtype, optimizer={"learning_rate": 1e-2})
    tx = config.make_optimizer(80)
    loss = model_loss(model, config.objective, dtype)
    step = jax.jit(make_train_step(loss, tx, config.ema), donate_argnums=0)
    images = np.random.default_rng(0).uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
    keys = example_keys(jax.random.key(0), 0, jnp.arange(8))
    batch = {"image": jnp.asarray(images), "key": keys}
    state = init_state(model.init(jax.random.key(0)), tx)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_network_overfits_one_batch_and_keeps_float32_weights(dtype):
    losses, state = overfit(TwoConvolutions(image_size=4, channels=1), dtype)
    assert losses[-1] < 0.5 * losses[0]
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    leaves = jax.tree.leaves((state.params, state.ema_params, moments))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    assert (optax.tree.get(state.opt_state, "loss_scale") is not None) == (dtype == "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(Model):
    """A model that records the arguments of its calls."""

    calls: list

    def apply(self, params, xt, t, condition=None, **options):
        self.calls.append((params, xt, t, condition, options))
        return xt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stub(Objective):
    """An objective whose loss is `function`."""

    function: Callable

    def loss(self, keys, network, images, t=None):
        return self.function(keys, network, images, t)


def test_model_loss_derives_separate_keys_for_noise_and_dropout():
    """A model with classes gets the labels of the batch, and the objective its timesteps."""
    model = Recorder(image_size=4, channels=1, num_classes=3, calls=collections.deque())
    without_classes = dataclasses.replace(model, num_classes=None)
    objective_calls = []

    def objective_loss(keys, network, images, t):
        objective_calls.append((keys, t))
        network(images, np.arange(3))
        return jnp.zeros(3)

    keys = jax.random.split(jax.random.key(0), 3)
    images = np.ones((3, 4, 4, 1))
    labels = np.arange(3)
    t = np.arange(3)
    batch = {"image": images, "label": labels, "key": keys}
    objective = Stub(function=objective_loss)
    model_loss(model, objective, "bfloat16")("params", keys, batch | {"t": t})
    model_loss(without_classes, objective)("params", keys, batch)
    (params, xt, network_t, condition, options), (*_, no_condition, _) = model.calls
    assert (params, options["dtype"], no_condition) == ("params", jnp.bfloat16, None)
    assert_same((xt, network_t, condition), (images, np.arange(3), labels))
    (noise_keys, objective_t), (_, no_t) = objective_calls
    assert objective_t is t
    assert no_t is None
    all_keys = [jax.random.key_data(k) for k in (keys, noise_keys, options["dropout_keys"])]
    assert len(np.unique(np.concatenate(all_keys), axis=0)) == 9


# Hidden conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(Model):
    """The smallest model with labels: xt times the embedding of the label."""

    def module(self):
        return ScalingModule(self.label_count)


class ScalingModule(nn.Module):
    num_labels: int

    @nn.compact
    def __call__(self, xt, t, labels, keys):
        scale = embedding(labels, self.num_labels, 1, "class_embedding")  # (b, 1)
        return xt * scale[:, None, None].astype(xt.dtype)


class TwoConditions(Scaling):
    """A model whose condition is two arrays."""

    def unconditional(self, n):
        return {"text": jnp.zeros((n, 2, 3)), "size": jnp.full(n, -1)}


HIDING = Scaling(image_size=1, channels=1, num_classes=3, label_dropout=0.25)
hide = jax.jit(hide_conditions, static_argnums=1)


def test_labels_are_hidden_with_probability_label_dropout_by_their_own_keys():
    n = 4000
    labels = jnp.asarray(np.arange(n) % 3, jnp.int32)
    keys = jax.random.split(jax.random.key(0), n)
    hidden = np.asarray(hide(keys, HIDING, labels))
    fraction = np.mean(hidden == -1)
    assert abs(fraction - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)
    np.testing.assert_array_equal(hidden[hidden != -1], labels[hidden != -1])
    for label in range(3):
        assert abs(np.mean(hidden[label::3] == -1) - 0.25) < 0.06, label
    # Hiding depends on the label's key, not on its place in the batch.
    np.testing.assert_array_equal(hide(keys[::-1], HIDING, labels[::-1]), hidden[::-1])
    other_keys = jax.random.split(jax.random.key(1), n)
    assert np.any(hide(other_keys, HIDING, labels) != hidden)


def test_all_arrays_of_a_condition_are_hidden_in_the_same_examples():
    model = TwoConditions(image_size=1, channels=1, num_classes=3, label_dropout=0.5)
    condition = {"text": jnp.ones((16, 2, 3)), "size": jnp.full(16, 7)}
    keys = jax.random.split(jax.random.key(0), 16)
    hidden = jax.tree.map(np.asarray, hide(keys, model, condition))
    rows = hidden["size"] == -1
    assert 0 < rows.sum() < 16
    np.testing.assert_array_equal(hidden["size"], np.where(rows, -1, 7))
    text = np.broadcast_to(~rows[:, None, None], (16, 2, 3))
    np.testing.assert_array_equal(hidden["text"], text)


def test_the_gradient_of_a_hidden_label_reaches_only_the_unconditional_row():
    def network_loss(keys, network, images, t):
        return network(images, t)[:, 0, 0, 0]

    model = dataclasses.replace(HIDING, label_dropout=0.5)
    loss = model_loss(model, Stub(function=network_loss))
    keys = jax.random.split(jax.random.key(1), 8)
    labels = jnp.asarray(np.arange(8) % 2, jnp.int32)
    batch = {"image": jnp.ones((8, 1, 1, 1)), "label": labels, "t": jnp.zeros(8, jnp.int32)}
    params = {"class_embedding": {"embedding": jnp.ones((4, 1))}}
    grads = jax.jit(jax.grad(lambda params: jnp.sum(loss(params, keys, batch))))(params)
    _, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    hidden = np.asarray(hide(dropout_keys, model, labels)) == -1
    assert 0 < hidden.sum() < 8
    visible = np.bincount(np.asarray(labels)[~hidden], minlength=3)
    rows = np.asarray(grads["class_embedding"]["embedding"])[:, 0]
    np.testing.assert_array_equal(rows, [*visible, hidden.sum()])


def test_example_keys_depend_on_key_step_and_row_alone():
    def data(seed, step, rows):
        keys = example_keys(jax.random.key(seed), step, jnp.asarray(rows))
        return np.asarray(jax.random.key_data(keys))

    whole = data(0, 5, range(8))
    halves = [data(0, 5, [0, 1, 2, 3]), data(0, 5, [4, 5, 6, 7])]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    np.testing.assert_array_equal(whole[::-1], data(0, 5, list(range(8))[::-1]))
    others = np.concatenate([whole, data(0, 6, range(8)), data(1, 5, range(8))])
    assert len(np.unique(others, axis=0)) == 24


def test_micro_batches_run_in_order_and_their_metrics_are_averaged():
    def step(images, batch):
        return [*images, batch["image"].tolist()], {"loss": np.mean(batch["image"])}

    batch = {"image": np.array([1.0, 3.0, 2.0, 8.0]), "key": np.arange(4)}
    for n in (1, 2, 4):
        images, metrics = step_by_micro_batches(step, [], batch, n)
        assert np.concatenate(images).tolist() == [1.0, 3.0, 2.0, 8.0]
        assert (len(images), float(metrics["loss"])) == (n, 3.5)


EDM = Objective(target="edm", schedule="edm", timestep_sampling="lognormal")
NET = dataclasses.replace(SMALLEST, num_classes=3, label_dropout=0.2, dropout=0.1)
LABELLED = dataclasses.replace(HIDING, image_size=4)
STEPS = {
    "noise": (NET, Objective(), {}),
    "lognormal": (LABELLED, EDM, {}),
    "importance": (LABELLED, Objective(), {"dtype": "float16", "importance_timesteps": 1000}),
}


def sharded_batch():
    """Four images with labels and keys."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1))
    batch = {
        "image": jnp.asarray(images, jnp.float32),
        "key": example_keys(jax.random.key(0), 0, jnp.arange(4)),
        "label": jnp.arange(4, dtype=jnp.int32) % 3,
    }
    return batch, split(EXPLICIT, batch)


def step_and_step_per_shard(loss, tx):
    """The step for one device or a sharded batch, and the step in shard_map with its checks."""
    specs = {"in_specs": (jax.P(), ROWS), "out_specs": jax.P()}
    per_shard = make_train_step(loss, tx, axis_name="data")
    return make_train_step(loss, tx), jax.shard_map(per_shard, mesh=EXPLICIT, **specs)


@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_can_be_traced_with_explicit_and_varying_axes(name):
    net, objective, options = STEPS[name]
    tx = make_optimizer(Optimizer(), 10, 10, **options)
    loss = model_loss(net, objective, options.get("dtype", "float32"))
    state = jax.eval_shape(functools.partial(init_state, tx=tx), net.shapes())
    for step in step_and_step_per_shard(loss, tx):
        new_state, metrics = jax.eval_shape(step, state, sharded_batch()[1])
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert metrics["loss"].shape == ()


def test_steps_on_an_explicit_mesh_and_in_shard_map_are_those_of_one_device():

    def loss(params, keys, batch):
        def network(xt, t):
            return conv3x3(jnp.sin(conv3x3(xt, params["in"])), params["out"])

        return simple_loss(keys, SCHEDULE, network, batch["image"])

    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 1, 4)), jnp.float32)
    state = init_state({"in": kernel, "out": kernel.swapaxes(2, 3)}, SGD)
    batch, sharded = sharded_batch()
    step, step_per_shard = map(jax.jit, step_and_step_per_shard(loss, SGD))
    expected = step(state, batch)
    assert_close(step(state, sharded), expected)
    assert_close(step_per_shard(state, sharded), expected)


def test_batches_and_losses_need_one_row_per_key():
    step = make_train_step(linear_loss, SGD)
    state = init_state(linear_params(), SGD)
    batch = linear_batch()
    cases = [
        (batch | {"image": batch["image"][:1]}, "image must have 8 rows, one per image"),
        (batch | {"label": jnp.zeros(1)}, "label must have 8 rows"),
    ]
    assert_refused(lambda batch: jax.eval_shape(step, state, batch), cases)
    step = make_train_step(lambda *arguments: jnp.mean(linear_loss(*arguments)), SGD)
    message = r"loss must have shape \(8,\) to match the batch, not \(\)"
    assert_refused(lambda batch: jax.eval_shape(step, state, batch), [(batch, message)])
    cases = [(3, "batch of 8 does not divide into 3"), (0, "n must be at least 1, not 0")]
    assert_refused(lambda n: list(micro_batches(batch, n)), cases)


def test_seeds_and_keys_of_training_are_checked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = r"seed must be in \[0, 2\*\*32\), not "
    assert_refused(training_keys, [(seed, message) for seed in (-1, 2**32)])
    key, _ = training_keys(0)
    cases = [
        ((key, -1), "step must be at least 0, not -1"),
        ((jnp.stack([key, key]), 0), r"takes one key, not keys of shape \(2,\)"),
    ]
    assert_refused(lambda case: example_keys(*case, jnp.arange(2)), cases)


def test_a_gpu_writes_the_gradients_with_the_layout_of_the_parameters_and_a_cpu_does_not():
    tree = {"kernel": jnp.arange(24.0).reshape(2, 3, 4), "count": jnp.ones(())}
    jitted = jax.jit(in_layout_of_parameters)
    for platform in ("cuda", "cpu"):
        program = jitted.trace(tree).lower(lowering_platforms=(platform,)).as_text()
        for operation in ("LayoutConstraint", "optimization_barrier"):
            assert (operation in program) == (platform == "cuda"), (platform, operation)
    assert_close(jitted(tree), tree)
    assert_close(jax.jit(written_by_rows)(tree), tree)
    assert_close(jax.jit(jax.vmap(written_by_rows))({"rows": jnp.ones((2, 3))}), {"rows": 1.0})


def test_only_steps_that_hold_whole_gradients_set_their_layout():
    state = init_state(linear_params(), SGD)
    step, step_per_shard = step_and_step_per_shard(linear_loss, SGD)
    of_shards = jax.make_jaxpr(step_per_shard)(state, split(EXPLICIT, linear_batch()))
    assert "layout_constraint" in str(of_shards)
    assert "layout_constraint" not in str(jax.make_jaxpr(step)(state, linear_batch()))


def test_small_gradients_are_averaged_and_laid_out_joined():
    """Both parameters of the linear loss are small."""
    state = init_state(linear_params(), SGD)
    _, step_per_shard = step_and_step_per_shard(linear_loss, SGD)
    of_shards = str(jax.make_jaxpr(step_per_shard)(state, split(EXPLICIT, linear_batch())))
    assert len(jax.tree.leaves(state.params)) == 2
    assert of_shards.count("layout_constraint[") == 1
