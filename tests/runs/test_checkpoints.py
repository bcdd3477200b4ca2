"""A saved state is restored bit for bit, and old steps are deleted as configured."""

import importlib.util
import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.saved_runs import small_recipe

from ddpm_jax.config import Checkpoint, config_from_json, config_to_json
from ddpm_jax.devices import parallel
from ddpm_jax.runs import checkpoints, saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.saved_steps import config_file, resolve_checkpoint
from ddpm_jax.training.optimizer import dynamic_loss_scale, skip_nonfinite
from ddpm_jax.training.step import TrainState, init_state

CONFIG = small_recipe()


def random_state() -> TrainState:
    """Random numbers for Adam's moments, counters, a loss scale and accumulated gradients."""
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": jnp.zeros((3, 3, 1, 4)), "bias": jnp.zeros(4)},
        "norm": {"scale": jnp.ones(4)},
    }
    tx = optax.MultiSteps(dynamic_loss_scale(skip_nonfinite(optax.adam(1e-3))), 2)
    shapes = jax.eval_shape(lambda: init_state(params, tx.gradient_transformation()))

    def draw(x):
        return jnp.asarray((100 * rng.standard_normal(x.shape)).astype(x.dtype))

    return jax.tree.map(draw, shapes)


def items(state: TrainState) -> dict:
    """The state's trees by name, without the step."""
    return {name: tree for name, tree in state._asdict().items() if name != "step"}


def small_items(value) -> dict:
    """An item that is quick to save."""
    return {"params": {"w": np.full(3, value, np.float32)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's directory with `random_state()` and CONFIG, saved at step 7."""
    workdir = tmp_path_factory.mktemp("run")
    with CheckpointWriter(workdir) as checkpoints:
        checkpoints.save(7, items(random_state()), config_to_json(CONFIG))
    return workdir


def restore(workdir, template, step=7):
    return checkpoints.restore(workdir, step, template)


def assert_same(ours, theirs):
    """Check that containers, arrays and dtypes are equal."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: x.dtype, theirs)


def test_a_state_is_restored_bit_for_bit(saved):
    state = random_state()
    template = items(jax.tree.map(jnp.zeros_like, state))
    restored = TrainState(state.step, **restore(saved, template))
    assert_same(restored, state)
    assert isinstance(restored.opt_state, optax.MultiStepsState)
    assert type(restored.opt_state.inner_opt_state).__name__ == "LossScaleState"


def test_an_item_can_be_restored_alone(saved):
    ema_params = random_state().ema_params
    restored = restore(saved, {"ema_params": jax.tree.map(jnp.zeros_like, ema_params)})
    assert list(restored) == ["ema_params"]
    assert_same(restored["ema_params"], ema_params)


def test_restored_arrays_have_the_sharding_of_the_template(saved):
    params = random_state().params
    replicated = restore(saved, {"params": parallel.put_state(params)})["params"]
    for leaf in jax.tree.leaves(replicated):
        assert leaf.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.local_devices())
    assert_same(replicated, params)
    device = jax.local_devices()[3]
    single = restore(saved, {"params": jax.device_put(params, device)})["params"]
    assert {leaf.device for leaf in jax.tree.leaves(single)} == {device}


def test_a_template_of_shapes_is_enough_to_restore(saved):
    params = random_state().params
    restored = restore(saved, {"params": jax.eval_shape(lambda: params)})["params"]
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_the_saved_config_equals_the_original(saved):
    assert config_from_json(json.loads(config_file(saved, 7).read_text())) == CONFIG


def test_parameters_of_another_network_are_refused_in_one_line_that_names_one(saved):
    params = random_state().params
    others = {
        "norm/scale is (4,) there and (5,)": params | {"norm": {"scale": np.ones(5)}},
        "more is missing there": params | {"more": np.ones(1)},
        "norm/scale is (4,) there and missing": {"conv": params["conv"]},
        "norm/gain": params | {"norm": {"gain": params["norm"]["scale"]}},
    }
    for words, other in others.items():
        with pytest.raises(
            ValueError, match="Checkpoint 7 holds the params of another model"
        ) as error:
            restore(saved, {"params": other})
        assert "\n" not in str(error.value), words
        assert words in str(error.value)


def test_a_missing_item_is_an_error(saved):
    with pytest.raises(ValueError, match="Checkpoint 7 has no optimizer"):
        restore(saved, {"optimizer": {"w": jnp.ones(1)}})


def test_old_checkpoints_are_deleted_as_configured(tmp_path):
    for name, options, remaining in (
        ("default", {}, [5, 6]),
        ("one", {"keep_last": 1}, [6]),
        ("three", {"keep_last": 3}, [4, 5, 6]),
        ("one and every third", {"keep_last": 1, "keep_every": 3}, [3, 6]),
    ):
        workdir = tmp_path / name
        with CheckpointWriter(workdir, Checkpoint(**options)) as checkpoints:
            for step in range(1, 7):
                checkpoints.save(step, small_items(step), {})
        assert saved_steps.steps(workdir) == remaining, name
        assert resolve_checkpoint(workdir) == (workdir, 6), name
        for step in remaining:
            restored = restore(workdir, small_items(0), step)
            np.testing.assert_array_equal(restored["params"]["w"], step)


def test_the_best_measured_checkpoint_is_kept(tmp_path):
    """Step 1 was measured in another way, step 4 not at all."""
    kids = {1: 0.1, 2: 0.5, 3: 0.3, 5: 0.4, 6: 0.6}
    with CheckpointWriter(tmp_path, Checkpoint(keep_last=1)) as checkpoints:
        for step in range(1, 7):
            made_with = {"num": 10 if step == 1 else 20}
            record = {"kid": kids.get(step), "made_with": made_with}
            data = {"evaluation": record} if step in kids else {}
            checkpoints.save(step, small_items(step), {}, data)
    assert saved_steps.steps(tmp_path) == [3, 6]
    assert resolve_checkpoint(tmp_path, "best") == (tmp_path, 3)


def test_arrays_may_be_donated_right_after_a_save(tmp_path):
    donate = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    tree = {"w": jnp.arange(2.0**20)}
    with CheckpointWriter(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": tree}, {})
        donate(tree)
    restored = restore(tmp_path, {"params": {"w": jnp.zeros(2**20)}}, 1)["params"]["w"]
    np.testing.assert_array_equal(restored, np.arange(2.0**20))


def test_a_second_writer_keeps_the_steps_of_the_first(tmp_path):
    for step in (1, 2):
        with CheckpointWriter(tmp_path) as checkpoints:
            checkpoints.save(step, small_items(step), {})
    assert saved_steps.steps(tmp_path) == [1, 2]
    assert resolve_checkpoint(tmp_path, 1) == (tmp_path, 1)


def snapshot(value):
    """Two small trees by name, with different numbers."""
    return {
        "power_0.05": small_items(value)["params"],
        "power_0.1": small_items(2 * value)["params"],
    }


def test_a_snapshot_is_complete_on_return_and_replaces_an_earlier_one(tmp_path):
    for value in (1, 3):
        CheckpointWriter(tmp_path).save_snapshot(4, snapshot(value))
        folder = tmp_path / saved_steps.SNAPSHOTS / "4"
        assert_same(checkpoints.read_trees(folder, snapshot(0)), snapshot(value))
    assert saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == [4]
    assert saved_steps.steps(tmp_path) == []


def test_read_trees_returns_numpy_arrays(saved):
    folder = saved / saved_steps.FOLDER / "7" / "ema_params"
    ema_params = random_state().ema_params
    on_host = checkpoints.read_trees(folder, jax.eval_shape(lambda: ema_params))
    assert_same(on_host, jax.tree.map(np.asarray, ema_params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))


def test_one_tree_of_a_snapshot_is_read_alone_and_a_wrong_shape_is_refused(tmp_path):
    CheckpointWriter(tmp_path).save_snapshot(4, snapshot(1))
    folder = tmp_path / saved_steps.SNAPSHOTS / "4"
    one = {"power_0.1": {"w": np.zeros(3, np.float32)}}
    trees = checkpoints.read_trees(folder, one)
    assert list(trees) == ["power_0.1"]
    np.testing.assert_array_equal(trees["power_0.1"]["w"], 2)
    for wrong in (
        {"w": np.zeros(4, np.float32)},
        {"w": one["power_0.1"]["w"], "v": np.zeros(3, np.float32)},
        {},
    ):
        message = r"4 holds the averages of another model .*power_0\.1/"
        with pytest.raises(ValueError, match=message):
            checkpoints.read_trees(folder, {"power_0.1": wrong})
    with pytest.raises(ValueError, match="5 has no averages"):
        checkpoints.read_trees(folder.parent / "5", one)


def test_the_description_of_the_data_is_saved(tmp_path):
    data = {"images": 1797, "classes": ["cat", "dog"]}
    with CheckpointWriter(tmp_path) as checkpoints:
        checkpoints.save(1, small_items(1), {}, data)
        checkpoints.save(2, small_items(2), {})
    assert saved_steps.data_at(tmp_path, 1) == data
    assert saved_steps.data_at(tmp_path, 2) == {}


@pytest.fixture
def levels():
    """Set every logger to a level that no code uses, and restore the levels afterwards."""
    names = ["", *logging.root.manager.loggerDict]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(17)
    yield lambda: {name: logging.getLogger(name).level for name in names}
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_importing_changes_no_logger(levels):
    """Execute the module once more, under another name."""
    spec = importlib.util.spec_from_file_location("imported_again", checkpoints.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert set(levels().values()) == {17}


def test_loggers_are_silenced_during_saves_and_restored_afterwards(levels, tmp_path):
    hook = sys.unraisablehook
    with pytest.raises(RuntimeError, match="stopped"), CheckpointWriter(tmp_path) as writer:
        changed = {name for name, level in levels().items() if level != 17}
        assert changed == set(checkpoints.NOISY_LOGGERS)
        writer.save(1, small_items(1), {})
        raise RuntimeError("stopped")
    assert set(levels().values()) == {17}
    assert sys.unraisablehook is hook
    restore(tmp_path, small_items(0), 1)
    assert set(levels().values()) == {17}
