"""List the steps of a run: the newest valid one is used, corrupt and missing ones are named."""

import itertools
import random
import shutil

import numpy as np
import pytest
from helpers.faults_of_disks import HARM

from ddpm_jax.config import Checkpoint
from ddpm_jax.runs import manifest, saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter, restore
from ddpm_jax.runs.saved_steps import resolve_checkpoint

KEEP_THREE = Checkpoint(keep_last=3)


def small_items(value) -> dict:
    """An item that is quick to save."""
    return {"params": {"w": np.full(3, value, np.float32)}}


def test_quarantine_deletes_later_snapshots(tmp_path):
    for step in (2, 4, 10):
        folder = tmp_path / saved_steps.SNAPSHOTS / str(step)
        folder.mkdir(parents=True)
    saved_steps.quarantine(tmp_path, after=4)
    assert saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == [2, 4]
    saved_steps.quarantine(tmp_path / "new", after=4)


def test_a_missing_run_or_step_is_an_error(tmp_path):
    message = "There is no directory .*nowhere: give the directory of a run"
    with pytest.raises(FileNotFoundError, match=message):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path)
    for step in (2, 10, 30):
        folder = tmp_path / saved_steps.FOLDER / str(step)
        folder.mkdir(parents=True)
        manifest.write(folder)
    # A save that was cut off is not a step.
    (tmp_path / saved_steps.FOLDER / "40.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint of step 5: choose one of 2, 10, 30\.$"):
        resolve_checkpoint(tmp_path, 5)
    assert resolve_checkpoint(str(tmp_path)) == (tmp_path, 30)
    with pytest.raises(ValueError, match="measured no checkpoint: name a step, or train"):
        resolve_checkpoint(tmp_path, "best")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 1, 2 and 3, which tests must not change."""
    workdir = tmp_path_factory.mktemp("saved")
    with CheckpointWriter(workdir, KEEP_THREE) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small_items(step), {})
    return workdir


@pytest.fixture
def three(saved, tmp_path):
    """A copy of the directory with steps 1, 2 and 3."""
    return shutil.copytree(saved, tmp_path / "three")


def corrupt(workdir, step):
    """Flip a bit in the largest file of a step, which holds its arrays. Returns its name."""
    paths = (workdir / saved_steps.FOLDER / str(step)).rglob("*/*")
    files = [path for path in paths if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def test_the_newest_valid_step_is_used_and_a_corrupt_one_is_named(three, capsys):
    name = corrupt(three, 3)
    assert resolve_checkpoint(three) == (three, 2)
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"Skipping {three / saved_steps.FOLDER / '3'}, which is corrupt: ")
    assert stderr.endswith(f"{name} has changed since the save.\n")
    with pytest.raises(ValueError, match=r"Checkpoint 3 of .* is corrupt \(.*: choose another"):
        resolve_checkpoint(three, 3)
    assert resolve_checkpoint(three, 1) == (three, 1)


def test_any_damage_to_any_file_makes_a_step_corrupt(saved, tmp_path, capsys):
    """Damage: a flipped bit, a cut, an empty or missing file or folder, another shape."""
    folder = saved / saved_steps.FOLDER / "3"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for number, (path, kind) in enumerate(itertools.product(files, HARM)):
        workdir = tmp_path / str(number)
        for step in ("2", "3"):
            shutil.copytree(saved / saved_steps.FOLDER / step, workdir / saved_steps.FOLDER / step)
        HARM[kind](workdir / path.relative_to(saved), random.Random(number))
        assert saved_steps.newest(workdir) == 2, (kind, path.name)
        warning = f"Skipping {workdir / saved_steps.FOLDER / '3'}, which is corrupt: "
        assert capsys.readouterr().err.startswith(warning), (kind, path.name)


def test_a_run_with_corrupt_steps_only_is_an_error(three):
    for step in (1, 2, 3):
        corrupt(three, step)
    with pytest.raises(ValueError, match=r"are corrupt: restore a backup .* --overwrite\.$"):
        saved_steps.newest(three)


def test_corrupt_steps_are_renamed_and_saved_again(three):
    for _ in range(2):
        corrupt(three, 3)
        saved_steps.quarantine(three, after=saved_steps.newest(three))
        with CheckpointWriter(three, KEEP_THREE) as checkpoints:
            checkpoints.save(3, small_items(7), {})
        assert saved_steps.newest(three) == 3
    np.testing.assert_array_equal(restore(three, 3, small_items(0))["params"]["w"], 7)
    names = sorted(path.name for path in (three / saved_steps.FOLDER).iterdir())
    assert names == ["1", "2", "3", "3-1.corrupt", "3-2.corrupt"]


def test_unfinished_saves_are_deleted(three):
    folder = three / saved_steps.FOLDER
    for name in ("4.orbax-checkpoint-tmp", "1.dropped"):
        (folder / name).mkdir()
        (folder / name / "x").touch()
    assert saved_steps.newest(three) == 3
    with CheckpointWriter(three, KEEP_THREE):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_a_damaged_record_stops_no_save_and_is_not_the_best(tmp_path, capsys):
    settings = Checkpoint(keep_last=3)
    with CheckpointWriter(tmp_path, settings) as checkpoints:
        for step, kid in ((1, 0.1), (2, 0.3), (3, 0.2)):
            record = {"kid": kid, "made_with": {"num": 4}}
            checkpoints.save(step, small_items(step), {}, {"evaluation": record})
        checkpoints.wait()
        record = tmp_path / saved_steps.FOLDER / "1" / "data" / "metadata"
        record.write_text("{")
        checkpoints.save(4, small_items(4), {})
    assert saved_steps.steps(tmp_path) == [2, 3, 4]
    (tmp_path / saved_steps.FOLDER / "3" / "data" / "metadata").write_text("[]")
    assert resolve_checkpoint(tmp_path, "best") == (tmp_path, 2)
    assert f"Skipping {tmp_path / saved_steps.FOLDER / '3'}, which is corrupt" in (
        capsys.readouterr().err
    )
