"""The loop: each host's rows, what is saved and told, where a run goes back to."""

import dataclasses
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import arrays
from helpers.saved_runs import RECIPE, small_recipe

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.data import InMemory
from ddpm_jax.runs import checkpoints, loop, manifest, metrics
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.progress import Reporter
from ddpm_jax.training import step as training
from ddpm_jax.training.step import TrainState

PIXELS = np.arange(40 * 64, dtype=np.uint32).astype(np.uint8).reshape(40, 8, 8, 1)
IMAGES = InMemory(PIXELS, np.arange(40, dtype=np.int32) % 10)
CONFIG = dataclasses.replace(
    RECIPE,
    training=dataclasses.replace(
        RECIPE.training, steps=16, skip_patience=3, on_patience="rollback"
    ),
    checkpoint=Checkpoint(every=3),
    log=Log(every=1, samples=0),
)


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """Draw no loss.png at the end of each run."""
    monkeypatch.setattr(metrics, "loss_curve", lambda *_, **__: None)


@pytest.fixture(scope="module")
def compiled():
    """The optimizer of CONFIG and its training step, compiled once for all tests."""
    tx = CONFIG.make_optimizer(len(IMAGES))
    return tx, loop.step_over_devices(CONFIG, tx)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_rows_of_all_hosts_are_the_global_batch(monkeypatch):
    """Micro-batch after micro-batch, each from its hosts in order; so are the keys of noise and dropout."""
    (wanted,) = loop.batches(CONFIG, IMAGES, 3, 4)
    wanted["key"] = jax.random.key_data(wanted["key"])
    for hosts in (1, 2, 4):
        monkeypatch.setattr(jax, "process_count", lambda hosts=hosts: hosts)
        parts = []
        for host in range(hosts):
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            (batch,) = loop.batches(CONFIG, IMAGES, 3, 4)
            batch["key"] = jax.random.key_data(batch["key"])
            batch = {name: np.asarray(rows) for name, rows in batch.items()}
            parts.append(list(training.micro_batches(batch, CONFIG.training.accumulation)))
        for name, rows in wanted.items():
            found = [part[name] for of_one in zip(*parts, strict=True) for part in of_one]
            case = f"{name}, {hosts} hosts"
            np.testing.assert_array_equal(np.concatenate(found), rows, err_msg=case)


def test_a_state_comes_back_as_it_was_saved(compiled, tmp_path, capsys):
    tx, train_step = compiled
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=2))
    saved = []

    def on_save(step, state):
        saved.append(jax.tree.map(np.asarray, state))

    state = loop.first_state(config, tx)
    assert loop.run_steps(config, tmp_path, IMAGES, train_step, state, on_save) == (2, 0)
    capsys.readouterr()
    found = loop.resumed_state(config, tx, tmp_path, 2, 40)
    assert_same(found, saved[0])
    assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(found))
    assert capsys.readouterr().err == ""
    loop.resumed_state(config, tx, tmp_path, 2, 41)
    assert "trained on 40 images so far, and on 41 from here" in capsys.readouterr().err


def test_weights_that_are_lost_come_back_from_before(compiled, tmp_path, capsys, caplog):
    """They are NaN after step 6, which is saved; the optimizer skips the updates after it."""
    tx, train_step = compiled
    calls = itertools.count(1)

    def lost(x):
        return jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding)

    def losing_step(state, batch):
        state, values = train_step(state, batch)
        if next(calls) == 6 * CONFIG.training.accumulation:
            state = state._replace(params=jax.tree.map(lost, state.params))
        return state, values

    loop.run_steps(CONFIG, tmp_path, IMAGES, losing_step, loop.first_state(CONFIG, tx))
    assert (
        "3 steps in a row, up to step 9: goes on with the weights of step 3"
        in capsys.readouterr().err
    )
    assert saved_steps.steps(tmp_path) == [15, 16]
    assert [path.name for path in tmp_path.glob("checkpoints/*.abandoned")] == ["6-1.abandoned"]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["loss"] is None] == [7, 8, 9]
    assert lines[-1]["skipped"] == 3
    assert not caplog.messages
    assert all(np.isfinite(x).all() for x in arrays(tmp_path, 16))


def small_walk(folder, losses, keep, after=lambda step: None, on_save=loop.ignore_save, **settings):
    """A walk whose step adds one to its only weight and has the next of the losses."""
    settings = {"steps": len(losses), "skip_patience": 2, "on_patience": "rollback"} | settings
    config = small_recipe(training=Training(batch_size=16, **settings), checkpoint=keep)
    given = iter(losses)

    def train_step(state, batch):
        params = {"w": state.params["w"] + 1}
        after(int(state.step) + 1)
        values = {"loss": jnp.float32(next(given)), "grad_norm": jnp.float32(1)}
        return TrainState(state.step + 1, params, {"ema": params}, state.opt_state), values

    first = {"w": jnp.zeros(1)}
    state = TrainState(jnp.int32(0), first, {"ema": first}, {"n": jnp.zeros(1)})
    return loop.run_steps(config, folder, IMAGES, train_step, state, on_save)


def weight(folder, step):
    like = {"params": {"w": np.zeros(1, np.float32)}}
    return float(checkpoints.restore(folder, step, like)["params"]["w"][0])


def test_on_save_gets_each_step_that_is_saved_and_its_state(tmp_path):
    told = []

    def on_save(step, state):
        told.append((step, int(state.step), float(state.params["w"][0])))

    small_walk(tmp_path, [1] * 7, Checkpoint(every=3, keep_last=5), on_save=on_save)
    assert told == [(3, 3, 3.0), (6, 6, 6.0), (7, 7, 7.0)]
    assert [(step, step, weight(tmp_path, step)) for step in saved_steps.steps(tmp_path)] == told


def test_on_start_is_called_before_anything_is_written_and_only_where_steps_are_left(tmp_path):
    folder = tmp_path / "run"

    def refuse():
        assert not folder.exists()
        raise ConnectionError("no hub")

    assert loop.train(CONFIG, folder, CONFIG.training.steps, on_start=refuse) == 0
    with pytest.raises(ConnectionError, match="no hub"):
        loop.train(CONFIG, folder, 0, on_start=refuse)
    assert not folder.exists()


def test_what_it_goes_back_to_at_the_last_step_is_what_is_saved(tmp_path):
    told = []

    def on_save(step, state):
        told.append((step, float(state.params["w"][0])))

    losses = [1, 1, 1, 1, 1, 1, np.nan, np.nan]
    small_walk(tmp_path, losses, Checkpoint(every=3), on_save=on_save)
    assert saved_steps.newest(tmp_path) == 8
    assert weight(tmp_path, 8) == 3
    assert told[-1] == (8, 3)


def test_a_checkpoint_to_go_back_to_is_never_dropped_and_what_it_goes_on_with_is_saved(tmp_path):
    """Steps after 4 are lost, which is known eight steps later; each is saved, and the last two are kept."""
    small_walk(tmp_path, [1] * 4 + [np.nan] * 8, Checkpoint(every=1), skip_patience=8)
    assert saved_steps.steps(tmp_path)[-1] == 12
    assert weight(tmp_path, 12) == 3


def test_a_run_that_is_to_stop_ends_where_updates_are_skipped_in_a_row(tmp_path):
    with pytest.raises(ValueError, match="not finite in 2 steps in a row, up to step 3: lower"):
        small_walk(tmp_path, [1, np.nan, np.nan, 1, 1], Checkpoint(every=1), on_patience="stop")
    assert saved_steps.steps(tmp_path)[0] == 1


def test_a_grid_that_cannot_be_drawn_takes_no_checkpoint_with_it(tmp_path, monkeypatch):
    def short_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Reporter, "draw", short_of_memory)
    with pytest.raises(MemoryError):
        small_walk(tmp_path, [1], Checkpoint())
    assert saved_steps.newest(tmp_path) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_a_step_counts_when_the_save_ahead_of_it_is_whole(tmp_path, monkeypatch, wait):
    """The manifest of step 2 is not written before step 4 is begun, or for half a second if it is waited for."""
    write, begun, order = manifest.write, threading.Event(), []

    def slow(folder):
        if folder.name == "2":
            begun.wait(0.5 if wait else 60)
            order.append("whole")
        write(folder)

    def after(step):
        order.append(step)
        if step == 4:
            begun.set()

    monkeypatch.setattr(manifest, "write", slow)
    small_walk(tmp_path, [1] * 5, Checkpoint(every=2, wait=wait), after=after)
    assert order == ([1, 2, 3, "whole", 4, 5] if wait else [1, 2, 3, 4, "whole", 5])
