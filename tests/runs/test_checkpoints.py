"""What is saved comes back bit for bit, part by part; old steps go as asked; what is not there is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.config import Checkpoint, Config, Training, from_json, to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices import parallel
from ddpm_jax.models.unet import UNet
from ddpm_jax.runs import checkpoints
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.runs.steps import config_file, find
from ddpm_jax.training.optimizer import dynamic_loss_scale, skip_nonfinite
from ddpm_jax.training.step import TrainState, init_state

CONFIG = Config(
    model=UNet(image_size=8, channels=1, widths=(32,), attention=(True,)), data=Digits(), training=Training(steps=10)
)


def random_state() -> TrainState:
    """A state with every kind of part: Adam's moments, counters, a loss scale, an accumulation; random numbers."""
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": jnp.zeros((3, 3, 1, 4)), "bias": jnp.zeros(4)}, "norm": {"scale": jnp.ones(4)}}
    tx = optax.MultiSteps(dynamic_loss_scale(skip_nonfinite(optax.adam(1e-3))), 2).gradient_transformation()
    state = init_state(params, tx)
    return jax.tree.map(lambda x: jnp.asarray(100 * rng.standard_normal(x.shape), x.dtype), state)


def items(state: TrainState) -> dict:
    """The state's trees by name; the step is the checkpoint's own."""
    return {name: tree for name, tree in state._asdict().items() if name != "step"}


def small(value) -> dict:
    """One item that is quick to save."""
    return {"params": {"w": jnp.full(3, value, jnp.float32)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's directory with `random_state()` and CONFIG saved at step 7."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(7, items(random_state()), to_json(CONFIG))
    return workdir


def restore(workdir, like, step=7):
    return checkpoints.restore(workdir, step, like)


def assert_same(ours, theirs):
    """Equal trees of equal arrays, types of containers and dtypes included."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, theirs)


def test_a_state_comes_back_bit_for_bit(saved):
    state = random_state()
    found = TrainState(state.step, **restore(saved, items(jax.tree.map(jnp.zeros_like, state))))
    assert_same(found, state)
    assert isinstance(found.opt_state, optax.MultiStepsState)
    assert type(found.opt_state.inner_opt_state).__name__ == "LossScaleState"


def test_an_item_can_be_restored_alone(saved):
    ema_params = random_state().ema_params
    found = restore(saved, {"ema_params": jax.tree.map(jnp.zeros_like, ema_params)})
    assert list(found) == ["ema_params"]
    assert_same(found["ema_params"], ema_params)


def test_arrays_come_back_where_those_of_like_are(saved):
    params = random_state().params
    found = restore(saved, {"params": parallel.place(params)})["params"]
    for leaf in jax.tree.leaves(found):
        assert leaf.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.local_devices())
    assert_same(found, params)
    alone = restore(saved, {"params": jax.device_put(params, jax.local_devices()[3])})["params"]
    assert {leaf.device for leaf in jax.tree.leaves(alone)} == {jax.local_devices()[3]}


def test_shapes_alone_are_enough_to_restore(saved):
    params = random_state().params
    found = restore(saved, {"params": jax.eval_shape(lambda: params)})["params"]
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_config_comes_back_equal(saved):
    assert from_json(json.loads(config_file(saved, 7).read_text())) == CONFIG


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda params: params | {"norm": {"scale": jnp.ones(5)}}, "norm/scale"),
        (lambda params: params | {"more": jnp.ones(1)}, "more"),
        (lambda params: {"conv": params["conv"]}, "norm/scale"),
        (lambda params: params | {"norm": {"gain": params["norm"]["scale"]}}, "norm/gain"),
    ],
    ids=["shape", "more", "less", "name"],
)
def test_another_nets_parameters_are_an_error_of_one_line_that_names_one(saved, change, named):
    with pytest.raises(ValueError, match="checkpoint 7 holds another model's") as error:
        restore(saved, {"params": change(random_state().params)})
    assert "\n" not in str(error.value)
    assert named in str(error.value)


def test_an_item_that_was_not_saved_is_an_error(saved):
    with pytest.raises(ValueError, match="checkpoint 7"):
        restore(saved, {"nothing": {"w": jnp.ones(1)}})


@pytest.mark.parametrize(
    ("options", "left"),
    [({}, [5, 6]), ({"keep_last": 1}, [6]), ({"keep_last": 3}, [4, 5, 6]), ({"keep_last": 1, "keep_every": 3}, [3, 6])],
    ids=str,
)
def test_old_checkpoints_go_as_asked(tmp_path, options, left):
    with Checkpoints(tmp_path, Checkpoint(**options)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, small(step), {})
    assert saved_steps.steps(tmp_path) == left
    assert find(tmp_path) == (tmp_path, 6)
    for step in left:
        np.testing.assert_array_equal(restore(tmp_path, small(0), step)["params"]["w"], step)


def test_arrays_may_be_donated_right_after_a_save(tmp_path):
    donate = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    tree = {"w": jnp.arange(2.0**20)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": tree}, {})
        donate(tree)
    found = restore(tmp_path, {"params": {"w": jnp.zeros(2**20)}}, 1)["params"]["w"]
    np.testing.assert_array_equal(found, np.arange(2.0**20))


def test_a_run_can_be_gone_on_with(saved, tmp_path):
    for step in (1, 2):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, small(step), {})
    assert saved_steps.steps(tmp_path) == [1, 2]
    assert find(tmp_path, 1) == (tmp_path, 1)


def snapshot(value):
    """Two small trees by name, of different numbers."""
    return {"power_0.05": small(value)["params"], "power_0.1": small(2 * value)["params"]}


def test_snapshots_are_whole_at_once_and_replace_those_of_their_step(tmp_path):
    for value in (1, 3):
        Checkpoints(tmp_path).save_snapshot(4, snapshot(value))
        folder = tmp_path / saved_steps.SNAPSHOTS / "4"
        found = checkpoints.read_trees(folder, snapshot(0))
        assert_same(found, snapshot(value))
    assert saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == [4]
    assert saved_steps.steps(tmp_path) == []


def test_of_many_trees_those_named_are_read_as_the_arrays_asked_for(saved):
    folder, ema_params = saved / saved_steps.FOLDER / "7" / "ema_params", random_state().ema_params
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), ema_params)
    assert_same(checkpoints.read_trees(folder, host), jax.tree.map(np.asarray, ema_params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(checkpoints.read_trees(folder, host)))
    placed = checkpoints.read_trees(folder, parallel.like_replicated(jax.eval_shape(lambda: ema_params)))
    assert_same(placed, ema_params)
    assert {leaf.sharding.device_set == set(jax.local_devices()) for leaf in jax.tree.leaves(placed)} == {True}


def test_one_tree_of_a_snapshot_is_read_alone_and_anothers_shape_is_an_error(tmp_path):
    Checkpoints(tmp_path).save_snapshot(4, snapshot(1))
    folder = tmp_path / saved_steps.SNAPSHOTS / "4"
    one = {"power_0.1": {"w": np.zeros(3, np.float32)}}
    found = checkpoints.read_trees(folder, one)
    assert list(found) == ["power_0.1"]
    np.testing.assert_array_equal(found["power_0.1"]["w"], 2)
    for wrong in ({"w": np.zeros(4, np.float32)}, {"w": one["power_0.1"]["w"], "v": np.zeros(3, np.float32)}, {}):
        with pytest.raises(ValueError, match=r"4 holds another model's averages .*power_0\.1/"):
            checkpoints.read_trees(folder, {"power_0.1": wrong})
    with pytest.raises(ValueError, match="5 holds no averages"):
        checkpoints.read_trees(folder.parent / "5", one)


def test_the_number_of_images_is_noted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), {}, 1797)
        checkpoints.save(2, small(2), {})
    assert saved_steps.images_of(tmp_path, 1) == 1797
    assert saved_steps.images_of(tmp_path, 2) is None
