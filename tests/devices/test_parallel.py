"""One device and eight give the same results by every route, and each device has its shard."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.kernels.matmul import matmul
from ddpm_jax.models.kernels.winograd import conv3x3
from ddpm_jax.models.layers import dropout
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.loss_bands import mean_by_band
from ddpm_jax.training.step import example_keys, init_state, make_train_step

ROUTES = ("one device", "pmap", "jit", "fsdp")
STEPS = 3
BATCH = 16
FSDP = 4


def loss(params, keys, batch):
    """A regression by our convolution and matmul, with dropout and noise by each example's key."""
    hidden = jnp.sin(conv3x3(batch["image"], params["kernel"]))  # (b, 4, 4, 8)
    hidden = dropout(hidden, 0.3, keys).reshape(len(keys), -1)
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return jnp.mean((matmul(hidden, params["w"]) + params["b"][None] - noise) ** 2, -1)


def fresh_params():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 1, 8), "w": (128, 3), "b": (3,)}
    return {
        name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


def batch_at_step(step):
    rng = np.random.default_rng(step)
    images = rng.uniform(-1, 1, (BATCH, 4, 4, 1)).astype(np.float32)
    keys = example_keys(jax.random.key(0), step, jnp.arange(BATCH))
    return {"image": jnp.asarray(images), "key": keys}


def on_route(route, make_step):
    """The step `make_step(axis_name)` by a route, and functions to place a state and a batch."""

    def same(batch):
        return batch

    if route == "one device":
        step = jax.jit(make_step(None), donate_argnums=0)
        return step, partial(jax.tree.map, jnp.copy), same
    if route == "fsdp":
        step = parallel.parallelize(make_step, "jit", FSDP)
        return step, partial(parallel.put_state, fsdp=FSDP), same
    return parallel.parallelize(make_step, route), parallel.put_state, parallel.shard


def train(route, params):
    """The state after STEPS steps of SGD, the metrics of each step, and the initial state."""
    tx = optax.sgd(0.1)
    make_step = partial(make_train_step, loss, tx, Ema(decay=0.5), objective=Objective())
    step, place_state, place_batch = on_route(route, make_step)
    # Steps donate the state, so it must not hold the caller's arrays.
    copy = jax.tree.map(jnp.copy, params)
    initial = place_state(init_state(copy, tx))
    state = initial
    metrics = []
    for i in range(STEPS):
        state, step_metrics = step(state, place_batch(batch_at_step(i)))
        metrics.append(step_metrics)
    return state, metrics, initial


def test_noise_and_masks_are_the_same_bits_on_every_route():
    def make_step(axis_name):
        def step(state, batch):
            noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(batch["key"])
            drawn = {"noise": noise, "mask": dropout(jnp.ones_like(noise), 0.5, batch["key"])}
            gather = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
            return state, drawn if axis_name is None else jax.tree.map(gather, drawn)

        return step

    draws = []
    for route in ("one device", "pmap", "jit"):
        step, place_state, place_batch = on_route(route, make_step)
        _, drawn = step(place_state(jnp.zeros(())), place_batch(batch_at_step(0)))
        draws.append(drawn)
    for other in draws[1:]:
        jax.tree.map(np.testing.assert_array_equal, draws[0], other)
    assert len(np.unique(draws[0]["noise"])) == BATCH * 16


@pytest.fixture(scope="module")
def trained():
    """The results of `train` by route, all from the same parameters, none of them zero."""
    assert jax.local_device_count() == 8
    params = fresh_params()
    with pytest.MonkeyPatch.context() as patch:
        # The arrays of this network are too small to be sharded otherwise.
        patch.setattr(parallel, "MIN_SHARDED_SIZE", 1)
        return {route: train(route, params) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES[1:])
def test_eight_devices_train_as_one(trained, route):
    one, one_metrics, _ = trained["one device"]
    eight, eight_metrics, _ = trained[route]
    assert int(eight.step) == STEPS
    for name in ("loss", "grad_norm"):
        ours = [float(metrics[name]) for metrics in one_metrics]
        theirs = [float(metrics[name]) for metrics in eight_metrics]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    bands = [
        mean_by_band(np.stack([each["loss_bands"] for each in metrics]))
        for metrics in (one_metrics, eight_metrics)
    ]
    np.testing.assert_allclose(*bands, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
    jax.tree.map(close, (one.params, one.ema_params), (eight.params, eight.ema_params))


@pytest.mark.parametrize("route", ["pmap", "jit"])
def test_the_state_stays_unstacked_and_replicated(trained, route):
    one, _, _ = trained["one device"]
    state, metrics, _ = trained[route]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, one)
    for leaf in jax.tree.leaves((state, metrics[-1])):
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.local_devices())
        shards = leaf.addressable_shards
        np.testing.assert_array_equal(shards[0].data, shards[7].data)


def test_with_fsdp_each_device_keeps_its_shard(trained):
    """Arrays without an axis that 4 divides are replicated: the step, the bias of three numbers."""
    state, _, _ = trained["fsdp"]
    for leaf in jax.tree.leaves(state):
        replicated = all(length % FSDP for length in leaf.shape)
        size = leaf.size if replicated else leaf.size // FSDP
        assert leaf.addressable_shards[0].data.size == size, leaf.shape
    gathered = parallel.gather_to_host(state.params)
    jax.tree.map(np.testing.assert_array_equal, gathered, jax.device_get(state.params))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))


def test_the_state_of_a_typical_unet_takes_a_quarter_on_each_of_four_devices():
    """Within 5%, for parameters, two averages and AdamW's moments of a million parameters."""
    model = UNet(
        image_size=8, channels=3, widths=(64, 64), attention=(False, True), layers_per_level=1
    )
    init = partial(init_state, tx=optax.adamw(1e-4), ema=Ema(extra_decays=(0.99,)))
    state = jax.eval_shape(init, model.shapes())

    def size_on_one_device(fsdp):
        def shard_size(x, sharding):
            return np.prod(sharding.shard_shape(x.shape))

        sizes = jax.tree.map(shard_size, state, parallel.state_shardings(state, fsdp))
        return sum(jax.tree.leaves(sizes))

    whole = size_on_one_device(1)
    assert whole == sum(leaf.size for leaf in jax.tree.leaves(state))
    assert whole / FSDP <= size_on_one_device(FSDP) <= 1.05 * whole / FSDP


def test_fsdp_that_does_not_divide_the_devices_is_refused():
    message = r"8 devices do not divide into groups of 3: change --parallel\.fsdp\.$"
    with pytest.raises(ValueError, match=message):
        parallel.training_mesh(3)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    step = parallel.pmap_step(lambda state, batch: (state, {}))
    with pytest.raises(ValueError, match="micro-batch of 12 cannot be split evenly over 8 devices"):
        step.shard_batch({"image": np.zeros((12, 4))})


def test_a_host_reads_its_rows_of_each_micro_batch(monkeypatch):
    cases = {(1, 0): range(12), (3, 1): [2, 3, 8, 9], (2, 0): [0, 1, 2, 6, 7, 8]}
    for (num_hosts, host), expected in cases.items():
        monkeypatch.setattr(jax, "process_count", lambda num_hosts=num_hosts: num_hosts)
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        rows = parallel.rows_of_host(12, accumulation=2)
        np.testing.assert_array_equal(rows, expected, f"host {host} of {num_hosts}")


def test_steps_donate_the_state(trained):
    for route in ROUTES:
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained[route][2])), route


def test_shard_splits_the_batch_and_replicate_does_not():
    x = jnp.arange(16.0).reshape(8, 2)
    sharded = parallel.shard({"x": x})["x"]
    shards = [np.asarray(shard.data) for shard in sharded.addressable_shards]
    np.testing.assert_array_equal(np.concatenate(shards), x)
    assert {shard.shape for shard in shards} == {(1, 2)}
    assert parallel.replicate({"x": x})["x"].is_fully_replicated


def test_the_error_for_an_indivisible_batch_names_the_nearest_multiples():
    parallel.check_divides(24)
    for batch_size, nearest in {12: "8 or 16", 3: "8 or 16", 33: "32 or 40"}.items():
        message = rf"batch of {batch_size} cannot be split .* 8 devices: .* such as {nearest}\.$"
        with pytest.raises(ValueError, match=message):
            parallel.check_divides(batch_size)


def test_each_device_sees_only_its_shard():
    """The sum over a shard is one example, whereas XLA's would be over the batch."""

    def sum_of_shard(tree, x, y):
        return tree + jnp.sum(x) + y

    mapped = parallel.per_shard(sum_of_shard)
    x = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(mapped)(1.0, x, 10 * x), 1 + x + 10 * x)
    assert parallel.per_shard(sum_of_shard) is mapped


def test_rows_are_mapped_one_at_a_time_on_every_device_by_one_program():
    traced = []

    def add_device(tree, rows):
        traced.append(rows.shape)
        return tree + rows + jnp.float32(jax.lax.axis_index("data"))

    for count in (3, 8, 11):
        rows = jnp.arange(2.0 * count).reshape(count, 2)
        mapped = parallel.map_rows(add_device, jnp.float32(1), rows)
        device = np.arange(count)[:, None] % 8
        np.testing.assert_array_equal(mapped, 1 + np.asarray(rows) + device)
    assert traced == [(1, 2)]
