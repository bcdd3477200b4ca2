"""A failed save is reported once, deletes no older step and leaves no partial files."""

import logging
import threading

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.file_limits import no_file_above

from ddpm_jax.config import Checkpoint
from ddpm_jax.runs import manifest, saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter


def small_items(value) -> dict:
    """An item that is quick to save."""
    return {"params": {"w": np.full(3, value, np.float32)}}


def test_no_step_is_deleted_before_a_newer_one_is_complete(tmp_path, monkeypatch):
    """The step before is still valid whenever a manifest is written."""
    seen = []
    write = manifest.write

    def is_valid(step):
        return saved_steps.find_corruption(tmp_path, step) is None

    def recorded_write(folder):
        seen.append([step for step in saved_steps.steps(tmp_path) if is_valid(step)])
        write(folder)

    monkeypatch.setattr(manifest, "write", recorded_write)
    with CheckpointWriter(tmp_path, Checkpoint(keep_last=1)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small_items(step), {})
    assert seen == [[], [1], [2]]
    assert saved_steps.steps(tmp_path) == [3]


def fail_once(monkeypatch, at):
    """Make writing the manifest of one step fail, as on a full disk."""
    write = manifest.write

    def failing(folder):
        if folder.name == str(at):
            raise OSError(28, "No space left on device")
        write(folder)

    monkeypatch.setattr(manifest, "write", failing)


@pytest.mark.filterwarnings("ignore")
def test_a_failed_save_stops_the_run_at_the_next_one(tmp_path, monkeypatch):
    fail_once(monkeypatch, 2)
    message = r"Step 2 was not saved \(.*No space left.*\): make .* Saved checkpoints: 1\.$"
    with pytest.raises(OSError, match=message), CheckpointWriter(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small_items(step), {})
    assert saved_steps.newest(tmp_path) == 1


def test_a_failed_save_is_reported_and_the_next_one_succeeds(tmp_path, monkeypatch, capsys):
    fail_once(monkeypatch, 2)
    with CheckpointWriter(tmp_path, Checkpoint(keep_last=3, on_failure="continue")) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small_items(step), {})
    assert saved_steps.steps(tmp_path) == [1, 3]
    assert saved_steps.newest(tmp_path) == 3
    cause = "Step 2 was not saved ([Errno 28] No space left on device)"
    warning = f"{cause}. Saved checkpoints: 1.\n"
    assert warning in capsys.readouterr().err


def test_two_failures_of_one_save_are_reported_once(tmp_path, monkeypatch, capsys):
    """Orbax writes arrays and metadata separately, and each write may find the disk full."""
    errors = iter([OSError(28, f"No space left for {name}") for name in ("arrays", "metadata")])
    wait = ocp.AsyncCheckpointer.wait_until_finished

    def failing(writer):
        wait(writer)
        in_the_background = threading.current_thread() is not threading.main_thread()
        if in_the_background and (error := next(errors, None)) is not None:
            raise error

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", failing)
    with CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small_items(step), {})
    assert capsys.readouterr().err.count("was not saved") == 1
    assert saved_steps.steps(tmp_path) == [2]


def test_a_failed_last_save_ends_the_run_even_with_on_failure_continue(tmp_path, monkeypatch):
    fail_once(monkeypatch, 2)
    with (
        pytest.raises(OSError, match="Step 2 was not saved"),
        CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints,
    ):
        for step in (1, 2):
            checkpoints.save(step, small_items(step), {})
    assert saved_steps.newest(tmp_path) == 1


def test_a_last_save_that_cannot_start_ends_the_run_too(tmp_path):
    """Orbax refuses at once, not in the background, to save to a folder that exists."""
    with (
        pytest.raises(OSError, match=r"Step 2 was not saved .*already exists"),
        CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints,
    ):
        checkpoints.save(1, small_items(1), {})
        checkpoints.wait()
        (tmp_path / saved_steps.FOLDER / "2").mkdir()
        checkpoints.save(2, small_items(2), {})
    assert saved_steps.newest(tmp_path) == 1


@pytest.mark.filterwarnings("ignore")
def test_after_a_failed_save_asyncio_does_not_report_it_again(tmp_path):
    """asyncio reports a failed task when it is freed, which may be at the exit of the process."""
    with (
        pytest.raises(OSError, match="Step 2 was not saved") as raised,
        CheckpointWriter(tmp_path) as checkpoints,
    ):
        (tmp_path / saved_steps.FOLDER / "2").mkdir(parents=True)
        checkpoints.save(2, small_items(2), {})
    assert not asyncio_reports(raised.value.__cause__)
    assert asyncio_reports(ValueError("of another task"))


def asyncio_reports(error: BaseException) -> bool:
    """Whether asyncio's logger lets a record about a failed task pass."""
    logger = logging.getLogger("asyncio")
    exc_info = (type(error), error, error.__traceback__)
    text = "Task exception was never retrieved"
    record = logger.makeRecord("asyncio", logging.ERROR, "events.py", 1, text, (), exc_info)
    return bool(logger.filter(record))


@pytest.mark.filterwarnings("ignore")
def test_a_failed_snapshot_is_reported_like_a_failed_save(tmp_path, monkeypatch, capsys):
    fail_once(monkeypatch, 4)
    with pytest.raises(OSError, match=r"The snapshot of step 4 was not saved .*No space left"):
        CheckpointWriter(tmp_path).save_snapshot(4, small_items(1))
    CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")).save_snapshot(4, small_items(1))
    assert "The snapshot of step 4 was not saved" in capsys.readouterr().err
    assert not (tmp_path / saved_steps.SNAPSHOTS / "4").exists()


def test_a_write_that_the_system_refuses_is_reported_without_a_traceback(tmp_path, capfd):
    """The error comes from a thread of TensorStore."""
    large = {"params": {"w": np.random.default_rng(0).standard_normal(2**15, np.float32)}}
    with CheckpointWriter(tmp_path, Checkpoint(on_failure="continue")) as checkpoints:
        checkpoints.save(1, small_items(1), {})
        checkpoints.wait()
        with no_file_above(50_000):
            checkpoints.save(2, large, {})
            checkpoints.wait()
        assert saved_steps.steps(tmp_path) == [1]
        checkpoints.save(3, large, {})
    stderr = capfd.readouterr().err
    assert stderr.count("Step 2 was not saved (") == 1
    assert "Traceback" not in stderr
    assert saved_steps.newest(tmp_path) == 3
