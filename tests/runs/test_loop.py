"""The loop: the same bits in every process, each host its rows, what is told when a run goes on."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import arrays
from helpers.hosts import CONFIG, by_sgd, spoiling
from helpers.training import assert_same

from ddpm_jax.config import Checkpoint
from ddpm_jax.data import InMemory
from ddpm_jax.runs import checkpoints, loop, manifest
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.progress import Reporter
from ddpm_jax.runs.sources import TrainedRun
from ddpm_jax.training import step as training
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.step import TrainState

IMAGES = InMemory(np.arange(40 * 64, dtype=np.uint32).astype(np.uint8).reshape(40, 8, 8, 1))


def test_three_processes_give_the_same_bits(tmp_path):
    first, *others = (by_sgd(tmp_path / name, steps=6) for name in "abc")
    for found, losses in others:
        assert losses == first[1]
        for ours, theirs in zip(found, first[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_rows_of_all_hosts_are_the_global_batch(monkeypatch, hosts):
    """Micro-batch after micro-batch, each from its hosts in order; so are the keys of noise and dropout."""
    (wanted,) = loop.batches(CONFIG, IMAGES, 3, 4)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    parts = []
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        (batch,) = loop.batches(CONFIG, IMAGES, 3, 4)
        parts.append(list(training.micro_batches(batch, CONFIG.training.accumulation)))
    for name in wanted:
        found = jnp.concatenate([part[name] for of_one in zip(*parts, strict=True) for part in of_one])
        assert_same(*(jax.random.key_data(x) if name == "key" else x for x in (found, wanted[name])))


def test_a_state_comes_back_as_it_was_and_another_number_of_images_is_told(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=2))
    tx = make_optimizer(config, len(IMAGES))
    assert loop.walk(config, tmp_path, IMAGES, loop.step_over_devices(config, tx), loop.first_state(config, tx)) == (
        2,
        0,
    )
    capsys.readouterr()
    state = loop.resumed_state(config, tx, tmp_path, 2, 40)
    assert int(state.step) == 2
    assert capsys.readouterr().err == ""
    assert_same(loop.resumed_state(config, tx, tmp_path, 2, 41), state)
    assert "trained on 40 images so far, and on 41 from here" in capsys.readouterr().err


def test_weights_that_are_lost_come_back_from_before(tmp_path, capsys, caplog):
    """They are NaN after step 6, the step of a checkpoint; the next one holds no number either."""
    settings = dataclasses.replace(CONFIG.training, steps=16, max_skipped=3, on_skipped="go_back")
    config = dataclasses.replace(CONFIG, training=settings, checkpoint=Checkpoint(every=3), ema=Ema())
    tx = make_optimizer(config, len(IMAGES))
    train_step = spoiling(loop.step_over_devices(config, tx), at=6 * settings.accumulation)
    loop.walk(config, tmp_path, IMAGES, train_step, loop.first_state(config, tx))
    assert "3 steps in a row, up to step 9: goes on with the weights of step 3" in capsys.readouterr().err
    assert saved_steps.steps(tmp_path) == [15, 16]
    assert [path.name for path in tmp_path.glob("checkpoints/*.abandoned")] == ["6-1.abandoned"]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["loss"] is None] == [7, 8, 9]
    assert lines[-1]["skipped"] == 3
    assert all(np.isfinite(x).all() for x in arrays(tmp_path, 16))
    assert not caplog.messages


def small_walk(folder, losses, keep, after=lambda step: None, **settings):
    """A walk whose step adds one to its only weight; that step of so many has such a loss."""
    settings = {"steps": len(losses), "accumulation": 1, "max_skipped": 2, "on_skipped": "go_back"} | settings
    training_settings = dataclasses.replace(CONFIG.training, **settings)
    config = dataclasses.replace(CONFIG, training=training_settings, checkpoint=keep, ema=Ema())
    given = iter(losses)

    def train_step(state, batch):
        params = {"w": state.params["w"] + 1}
        after(int(state.step) + 1)
        metrics = {"loss": jnp.float32(next(given)), "grad_norm": jnp.float32(1)}
        return TrainState(state.step + 1, params, {"ema": params}, state.opt_state), metrics

    first, none = {"w": jnp.zeros(1)}, {"n": jnp.zeros(1)}
    return loop.walk(config, folder, IMAGES, train_step, TrainState(jnp.int32(0), first, {"ema": first}, none))


def weight(folder, step):
    like = {"params": {"w": np.zeros(1, np.float32)}}
    return float(checkpoints.restore(folder, step, like)["params"]["w"][0])


def test_what_it_goes_back_to_at_the_last_step_is_what_is_saved(tmp_path):
    small_walk(tmp_path, [1, 1, 1, 1, 1, 1, np.nan, np.nan], Checkpoint(every=3))
    assert saved_steps.newest(tmp_path) == 8
    assert weight(tmp_path, 8) == 3


def test_a_checkpoint_to_go_back_to_is_never_dropped_and_what_it_goes_on_with_is_saved(tmp_path):
    """Steps after 4 are lost, which is known eight steps later; each is saved, and the last two are kept."""
    kept = Checkpoint(every=1)
    small_walk(tmp_path, [1] * 4 + [np.nan] * 8, kept, max_skipped=8)
    assert saved_steps.steps(tmp_path)[-1] == 12
    assert weight(tmp_path, 12) == 3


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
    small_walk(tmp_path, [1] * 5, Checkpoint(every=2, wait=wait), after)
    assert order == ([1, 2, 3, "whole", 4, 5] if wait else [1, 2, 3, 4, "whole", 5])


def test_an_upload_gets_what_samples_are_drawn_with(tmp_path):
    tx = make_optimizer(CONFIG, len(IMAGES))
    run, state, sent = TrainedRun(tmp_path, 3, CONFIG), loop.first_state(CONFIG, tx), []
    loop.send(None, run, state)
    loop.send(lambda *what: sent.append(what), run, state)
    ((found, params),) = sent
    assert found == run
    assert_same(params, state.ema_params["ema"])
