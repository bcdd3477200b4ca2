"""A save that fails is told once, takes no older one with it and leaves nothing half-written."""

import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.file_limits import no_file_above

from ddpm_jax.config import Checkpoint
from ddpm_jax.runs import manifest
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter


def small(value) -> dict:
    """One item that is quick to save."""
    return {"params": {"w": np.full(3, value, np.float32)}}


def test_no_step_is_given_up_before_a_newer_one_is_whole(tmp_path, monkeypatch):
    """The older ones are there whenever a manifest is written."""
    seen, write = [], manifest.write

    def watched(folder):
        seen.append(
            [
                step
                for step in saved_steps.steps(tmp_path)
                if saved_steps.find_corruption(tmp_path, step) is None
            ]
        )
        write(folder)

    monkeypatch.setattr(manifest, "write", watched)
    with CheckpointWriter(tmp_path, Checkpoint(keep_last=1)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {})
    assert seen == [[], [1], [2]]
    assert saved_steps.steps(tmp_path) == [3]


def fail_once(monkeypatch, at):
    """The manifest of one step cannot be written, as on a full disk."""
    write = manifest.write

    def failing(folder):
        if folder.name == str(at):
            raise OSError(28, "No space left on device")
        write(folder)

    monkeypatch.setattr(manifest, "write", failing)


@pytest.mark.filterwarnings("ignore")
def test_a_failed_save_stops_the_run_at_the_next_one(tmp_path, monkeypatch):
    fail_once(monkeypatch, 2)
    with (
        pytest.raises(
            OSError,
            match=r"step 2 was not saved \(.*No space left.*\); checkpoints there are: 1: make",
        ),
        CheckpointWriter(tmp_path) as checkpoints,
    ):
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {})
    assert saved_steps.newest(tmp_path) == 1


def test_a_failed_save_is_told_and_the_next_one_succeeds(tmp_path, monkeypatch, capsys):
    fail_once(monkeypatch, 2)
    with CheckpointWriter(tmp_path, Checkpoint(keep_last=3, on_failure="continue")) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {})
    assert saved_steps.steps(tmp_path) == [1, 3]
    assert saved_steps.newest(tmp_path) == 3
    assert (
        "step 2 was not saved ([Errno 28] No space left on device); checkpoints there are: 1\n"
        in capsys.readouterr().err
    )


def test_two_failures_of_one_save_are_told_once(tmp_path, monkeypatch, capsys):
    """Orbax writes arrays and metadata each by itself, and each may find the disk full."""
    full = iter(
        [OSError(28, "No space left for arrays"), OSError(28, "No space left for metadata")]
    )
    wait = ocp.AsyncCheckpointer.wait_until_finished

    def failing(writer):
        wait(writer)
        in_the_background = threading.current_thread() is not threading.main_thread()
        if in_the_background and (error := next(full, None)) is not None:
            raise error

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", failing)
    with CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small(step), {})
    assert capsys.readouterr().err.count("was not saved") == 1
    assert saved_steps.steps(tmp_path) == [2]


def test_a_failed_last_save_ends_the_run_even_if_told_to_go_on(tmp_path, monkeypatch):
    fail_once(monkeypatch, 2)
    with (
        pytest.raises(OSError, match="step 2 was not saved"),
        CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints,
    ):
        for step in (1, 2):
            checkpoints.save(step, small(step), {})
    assert saved_steps.newest(tmp_path) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_snapshot_that_fails_is_told_as_a_save_is(tmp_path, monkeypatch, capsys):
    fail_once(monkeypatch, 4)
    with pytest.raises(OSError, match=r"the snapshot of step 4 was not saved .*No space left"):
        CheckpointWriter(tmp_path).save_snapshot(4, small(1))
    CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")).save_snapshot(4, small(1))
    assert "the snapshot of step 4 was not saved" in capsys.readouterr().err
    assert not (tmp_path / saved_steps.SNAPSHOTS / "4").exists()


def test_a_file_that_the_system_refuses_is_told_without_a_traceback(tmp_path, capfd):
    """The error is TensorStore's own, from one of its threads."""
    large = {"params": {"w": np.random.default_rng(0).standard_normal(2**15, np.float32)}}
    with CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        with no_file_above(50_000):
            checkpoints.save(2, large, {})
            checkpoints.wait()
        assert saved_steps.steps(tmp_path) == [1]
        checkpoints.save(3, large, {})
    words = capfd.readouterr().err
    assert words.count("step 2 was not saved (") == 1
    assert "Traceback" not in words
    assert saved_steps.newest(tmp_path) == 3
