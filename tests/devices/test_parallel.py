"""One device and eight agree, by every route; each device has its share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.devices import parallel
from ddpm_jax.models.kernels.matmul import matmul
from ddpm_jax.models.kernels.winograd import conv3x3
from ddpm_jax.models.layers import dropout
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.step import example_keys, init_state, make_train_step

ROUTES = ("one device", "pmap", "jit", "fsdp")
STEPS, BATCH, FSDP = 3, 16, 4


def loss(params, keys, batch):
    """A regression by our convolution and product, with dropout and noise of each example's key."""
    hidden = jnp.sin(conv3x3(batch["image"], params["kernel"]))  # (b, 4, 4, 8)
    hidden = dropout(hidden, 0.3, keys).reshape(len(keys), -1)
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return jnp.mean((matmul(hidden, params["w"]) + params["b"][None] - noise) ** 2, -1)


def fresh_params():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 3, 1, 8), "w": (128, 3), "b": (3,)}
    draw = lambda shape: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {name: draw(shape) for name, shape in shapes.items()}


def batch_of(step):
    rng = np.random.default_rng(step)
    images = rng.uniform(-1, 1, (BATCH, 4, 4, 1)).astype(np.float32)
    keys = example_keys(jax.random.key(0), step, jnp.arange(BATCH))
    return {"image": jnp.asarray(images), "key": keys}


def on_route(route, make_step):
    """The step of `make_step(axis_name)` and how to place a state and a batch for it."""
    if route == "one device":
        return (
            jax.jit(make_step(None), donate_argnums=0),
            lambda state: jax.tree.map(jnp.copy, state),
            lambda batch: batch,
        )
    if route == "fsdp":
        return (
            parallel.parallelize(make_step, "jit", FSDP),
            partial(parallel.put_state, fsdp=FSDP),
            lambda batch: batch,
        )
    return parallel.parallelize(make_step, route), parallel.put_state, parallel.shard


def train(route, params):
    """The state after STEPS steps of SGD, the metrics of each, and the state that went in."""
    tx = optax.sgd(0.1)
    make_step = partial(make_train_step, loss, tx, Ema(decay=0.5))
    step, place_state, place_batch = on_route(route, make_step)
    first = state = place_state(
        init_state(jax.tree.map(jnp.copy, params), tx)
    )  # copied, because steps donate it
    metrics = []
    for i in range(STEPS):
        state, metric = step(state, place_batch(batch_of(i)))
        metrics.append(metric)
    return state, metrics, first


def test_noise_and_masks_are_the_same_bits_on_every_route():
    def make_step(axis_name):
        def step(state, batch):
            noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(batch["key"])
            drawn = {"noise": noise, "mask": dropout(jnp.ones_like(noise), 0.5, batch["key"])}
            gather = partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
            return state, drawn if axis_name is None else jax.tree.map(gather, drawn)

        return step

    found = []
    for route in ("one device", "pmap", "jit"):
        step, place_state, place_batch = on_route(route, make_step)
        found.append(step(place_state(jnp.zeros(())), place_batch(batch_of(0)))[1])
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)
    assert len(np.unique(found[0]["noise"])) == BATCH * 16


@pytest.fixture(scope="module")
def trained(optimized):
    """By route: what `train` gives from the same parameters, none of them zero."""
    assert jax.local_device_count() == 8
    params = fresh_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "MIN_SHARDED_SIZE", 1)  # the net is a small one
        return {route: train(route, params) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES[1:])
def test_eight_devices_train_as_one(trained, route):
    (alone, metrics, _), (spread, spread_metrics, _) = trained["one device"], trained[route]
    assert int(spread.step) == STEPS
    for name in ("loss", "grad_norm"):
        ours, theirs = (
            [float(metric[name]) for metric in some] for some in (metrics, spread_metrics)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)  # noqa: E731
    jax.tree.map(close, (alone.params, alone.ema_params), (spread.params, spread.ema_params))


@pytest.mark.parametrize("route", ["pmap", "jit"])
def test_the_state_stays_unstacked_and_whole_on_every_device(trained, route):
    alone, (state, metrics, _) = trained["one device"][0], trained[route]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, alone)
    for leaf in jax.tree.leaves((state, metrics[-1])):
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.local_devices())
        np.testing.assert_array_equal(
            leaf.addressable_shards[0].data, leaf.addressable_shards[7].data
        )


def test_by_fsdp_each_device_keeps_its_share(trained):
    """Arrays without an axis that 4 divides stay whole: the step, the bias of three numbers."""
    state = trained["fsdp"][0]
    for leaf in jax.tree.leaves(state):
        whole = all(length % FSDP for length in leaf.shape)
        assert leaf.addressable_shards[0].data.size == leaf.size // (1 if whole else FSDP), (
            leaf.shape
        )
    gathered = parallel.gather_to_host(state.params)
    jax.tree.map(np.testing.assert_array_equal, gathered, jax.device_get(state.params))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))


def test_a_usual_net_takes_a_quarter_on_each_of_four_devices():
    """Parameters, two averages and AdamW's moments of a net with a million parameters, within 5%."""
    model = UNet(
        image_size=8, channels=3, widths=(64, 64), attention=(False, True), layers_per_level=1
    )
    init = partial(init_state, tx=optax.adamw(1e-4), ema=Ema(others=(0.99,)))
    state = jax.eval_shape(init, model.shapes())

    def numbers_on_one_device(fsdp):
        split = parallel.state_shardings(state, fsdp)
        parts = jax.tree.map(lambda x, lie: np.prod(lie.shard_shape(x.shape)), state, split)
        return sum(jax.tree.leaves(parts))

    whole, split = numbers_on_one_device(1), numbers_on_one_device(FSDP)
    assert whole == sum(leaf.size for leaf in jax.tree.leaves(state))
    assert whole / FSDP <= split <= 1.05 * whole / FSDP


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match=r"8 devices do not divide into groups of 3: change --parallel\.fsdp"
    ):
        parallel.training_mesh(3)


def test_a_host_reads_its_share_of_each_micro_batch(monkeypatch):
    cases = {(1, 0): range(12), (3, 1): [2, 3, 8, 9], (2, 0): [0, 1, 2, 6, 7, 8]}
    for (hosts, host), rows in cases.items():
        monkeypatch.setattr(jax, "process_count", lambda hosts=hosts: hosts)
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        found = parallel.rows_of_host(12, accumulation=2)
        np.testing.assert_array_equal(found, rows, f"host {host} of {hosts}")


def test_steps_donate_the_state(trained):
    for route in ROUTES:
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained[route][2])), route


def test_sharding_splits_the_batch_and_replication_does_not():
    x = jnp.arange(16.0).reshape(8, 2)
    pieces = [np.asarray(piece.data) for piece in parallel.shard({"x": x})["x"].addressable_shards]
    np.testing.assert_array_equal(np.concatenate(pieces), x)
    assert {piece.shape for piece in pieces} == {(1, 2)}
    assert parallel.replicate({"x": x})["x"].is_fully_replicated


def test_a_batch_that_does_not_divide_names_those_that_do():
    parallel.check_divides(24)
    for batch_size, such in {12: "8 or 16", 3: "8 or 16", 33: "32 or 40"}.items():
        message = f"batch of {batch_size} does not divide over 8 devices: .* such as {such}$"
        with pytest.raises(ValueError, match=message):
            parallel.check_divides(batch_size)


def test_each_device_works_on_its_share_alone():
    """A sum over the examples at hand: each share is one example, where XLA would sum over all."""

    def sum_of_share(tree, x, y):
        return tree + jnp.sum(x) + y

    apart = parallel.per_shard(sum_of_share)
    x = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(apart)(1.0, x, 10 * x), 1 + x + 10 * x)
    assert parallel.per_shard(sum_of_share) is apart
