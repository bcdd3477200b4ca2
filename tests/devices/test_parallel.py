"""One device and eight agree, by every route; each device has its share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.fresh_python import in_a_process

from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.layers import dropout
from ddpm_jax.models.unet import UNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.step import example_keys, init_state, make_train_step, model_loss

pytestmark = pytest.mark.usefixtures("optimized")
MODEL = UNet(
    image_size=4,
    channels=1,
    widths=(8,),
    attention=(False,),
    layers_per_level=1,
    dropout=0.3,
    num_classes=3,
    groups=4,
)
ROUTES = ("one device", "pmap", "jit", "fsdp")
STEPS, BATCH, FSDP = 5, 16, 4


def batch_of(step):
    rng = np.random.default_rng(step)
    images = rng.uniform(-1, 1, (BATCH, *MODEL.image_shape)).astype(np.float32)
    keys = example_keys(jax.random.key(0), step, jnp.arange(BATCH))
    return {"image": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 3, BATCH), jnp.int32), "key": keys}


def on_route(route, make_step):
    """The step of `make_step(axis_name)` and how to place a state and a batch for it."""
    if route == "one device":
        return (
            jax.jit(make_step(None), donate_argnums=0),
            lambda state: jax.tree.map(jnp.copy, state),
            lambda batch: batch,
        )
    if route == "fsdp":
        return parallel.spread(make_step, "jit", FSDP), partial(parallel.place, fsdp=FSDP), lambda batch: batch
    return parallel.spread(make_step, route), parallel.place, parallel.shard


def train(route, params):
    """The state after STEPS steps of SGD, the metrics of each, and the state that went in."""
    tx = optax.sgd(0.1)
    make_step = partial(make_train_step, model_loss(MODEL, Objective()), tx, Ema(decay=0.5))
    step, place_state, place_batch = on_route(route, make_step)
    first = state = place_state(init_state(jax.tree.map(jnp.copy, params), tx))  # copied, because steps donate it
    metrics = []
    for i in range(STEPS):
        state, metric = step(state, place_batch(batch_of(i)))
        metrics.append(metric)
    return state, metrics, first


@pytest.fixture(scope="module")
def trained():
    """By route: what `train` gives from the same parameters, none of them zero."""
    assert jax.local_device_count() == 8
    rng = np.random.default_rng(0)
    fresh = MODEL.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), fresh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "LEAST_SPLIT", 1)  # the net is a small one
        return {route: train(route, params) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES[1:])
def test_eight_devices_train_as_one(trained, route):
    (alone, metrics, _), (spread, spread_metrics, _) = trained["one device"], trained[route]
    assert int(spread.step) == STEPS
    for name in ("loss", "grad_norm"):
        ours, theirs = ([float(metric[name]) for metric in some] for some in (metrics, spread_metrics))
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
        np.testing.assert_array_equal(leaf.addressable_shards[0].data, leaf.addressable_shards[7].data)


def bytes_on_one_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_by_fsdp_each_device_keeps_its_share(trained):
    """Arrays of which no axis divides by 4 stay whole: one input channel, three classes."""
    state = trained["fsdp"][0]
    for leaf in jax.tree.leaves(state):
        whole = all(length % FSDP for length in leaf.shape)
        assert leaf.addressable_shards[0].data.size == leaf.size // (1 if whole else FSDP), leaf.shape
    gathered = parallel.at_hand(state.params)
    jax.tree.map(np.testing.assert_array_equal, gathered, jax.device_get(state.params))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))


def test_the_state_of_a_usual_net_takes_a_quarter_on_each_of_four_devices():
    """Parameters, two averages and AdamW's moments of a net with a million parameters, within 5%."""
    model = UNet(image_size=8, channels=3, widths=(64, 64), attention=(False, True), layers_per_level=1)
    shapes = jax.eval_shape(
        lambda key: init_state(model.init(key), optax.adamw(1e-4), Ema(others=(0.99,))), jax.random.key(0)
    )
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    whole, split = (bytes_on_one_device(parallel.place(state, fsdp)) for fsdp in (1, FSDP))
    assert whole == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert whole / FSDP <= split <= 1.05 * whole / FSDP


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"8 devices do not divide into groups of 3: change --parallel\.fsdp"):
        parallel.training_mesh(3)


@pytest.mark.parametrize(
    ("hosts", "host", "rows"), [(1, 0, range(12)), (3, 1, [2, 3, 8, 9]), (2, 0, [0, 1, 2, 6, 7, 8])]
)
def test_a_host_reads_its_share_of_each_micro_batch(monkeypatch, hosts, host, rows):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(jax, "process_index", lambda: host)
    np.testing.assert_array_equal(parallel.rows_of_host(12, accumulation=2), rows)


@pytest.mark.parametrize("route", ROUTES)
def test_the_state_that_went_in_is_donated(trained, route):
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained[route][2]))


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


def test_sharding_splits_the_batch_and_replication_does_not():
    x = jnp.arange(16.0).reshape(8, 2)
    pieces = [np.asarray(piece.data) for piece in parallel.shard({"x": x})["x"].addressable_shards]
    np.testing.assert_array_equal(np.concatenate(pieces), x)
    assert {piece.shape for piece in pieces} == {(1, 2)}
    assert parallel.replicate({"x": x})["x"].is_fully_replicated


@pytest.mark.parametrize(("batch_size", "such"), [(12, "8 or 16"), (3, "8 or 16"), (33, "32 or 40")])
def test_a_batch_that_does_not_divide_names_those_that_do(batch_size, such):
    parallel.check_divides(24)
    with pytest.raises(ValueError, match=f"batch of {batch_size} does not divide over 8 devices: .* such as {such}$"):
        parallel.check_divides(batch_size)


def test_each_device_works_on_its_share_alone():
    """Three examples from a sum over the examples at hand: the shares are one example each, as XLA would not cut it."""
    code = (
        "import numpy as np, jax.numpy as jnp\n"
        "def of_share(tree, x, *, y): return tree + jnp.sum(x) + y\n"
        "apart = parallel.by_device(of_share)\n"
        "print(np.asarray(jax.jit(apart)(1.0, jnp.arange(3.0), y=jnp.asarray([10.0, 20.0, 30.0]))).tolist())\n"
        "print(parallel.by_device(of_share) is apart)"
    )
    assert in_a_process(code, JAX_NUM_CPU_DEVICES="3") == ["[11.0, 22.0, 33.0]", "True"]
