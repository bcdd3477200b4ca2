"""Steps in a directory: the newest whole one counts, damaged and missing ones are named."""

import itertools
import random
import shutil

import numpy as np
import pytest
from helpers.faults_of_disks import HARM

from ddpm_jax.config import Checkpoint
from ddpm_jax.runs import manifest
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.checkpoints import CheckpointWriter, restore
from ddpm_jax.runs.steps import resolve_checkpoint

KEPT = Checkpoint(keep_last=3)


def small(value) -> dict:
    """One item that is quick to save."""
    return {"params": {"w": np.full(3, value, np.float32)}}


def test_later_snapshots_go_with_their_steps(tmp_path):
    for step in (2, 4, 10):
        folder = tmp_path / saved_steps.SNAPSHOTS / str(step)
        folder.mkdir(parents=True)
    saved_steps.quarantine(tmp_path, after=4)
    assert saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == [2, 4]
    saved_steps.quarantine(tmp_path / "new", after=4)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere does not exist: give the directory of a run"
    ):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path)
    for step in (2, 10, 30):
        folder = tmp_path / saved_steps.FOLDER / str(step)
        folder.mkdir(parents=True)
        manifest.write(folder)
    (tmp_path / saved_steps.FOLDER / "40.orbax-checkpoint-tmp").mkdir()  # a save that was cut off
    with pytest.raises(ValueError, match=r"no checkpoint of step 5; it has 2, 10, 30$"):
        resolve_checkpoint(tmp_path, 5)
    assert resolve_checkpoint(str(tmp_path)) == (tmp_path, 30)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 1, 2 and 3, which no test changes."""
    workdir = tmp_path_factory.mktemp("saved")
    with CheckpointWriter(workdir, KEPT) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small(step), {})
    return workdir


@pytest.fixture
def three(saved, tmp_path):
    """A copy of the directory with steps 1, 2 and 3."""
    return shutil.copytree(saved, tmp_path / "three")


def harm(workdir, step):
    """Flips a bit of the largest file of a step, which is that of its arrays."""
    files = [
        path for path in (workdir / saved_steps.FOLDER / str(step)).rglob("*/*") if path.is_file()
    ]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def test_the_newest_whole_step_is_used_and_what_is_damaged_is_named(three, capsys):
    name = harm(three, 3)
    assert resolve_checkpoint(three) == (three, 2)
    words = capsys.readouterr().err
    assert words.startswith(f"{three / saved_steps.FOLDER / '3'} is damaged and left out: ")
    assert words.endswith(f"{name} is not as it was saved\n")
    with pytest.raises(ValueError, match=r"checkpoint 3 of .* is damaged"):
        resolve_checkpoint(three, 3)
    assert resolve_checkpoint(three, 1) == (three, 1)


def test_damage_of_any_kind_to_any_file_leaves_the_step_before(saved, tmp_path, capsys):
    """A flipped bit, a cut, an empty or a missing file or folder, another shape."""
    folder = saved / saved_steps.FOLDER / "3"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for number, (path, kind) in enumerate(itertools.product(files, HARM)):
        workdir = tmp_path / str(number)
        for step in ("2", "3"):
            shutil.copytree(saved / saved_steps.FOLDER / step, workdir / saved_steps.FOLDER / step)
        HARM[kind](workdir / path.relative_to(saved), random.Random(number))
        assert saved_steps.newest(workdir) == 2, (kind, path.name)
        said = f"{workdir / saved_steps.FOLDER / '3'} is damaged and left out: "
        assert capsys.readouterr().err.startswith(said), (kind, path.name)


def test_without_a_whole_step_it_stops(three):
    for step in (1, 2, 3):
        harm(three, step)
    with pytest.raises(
        ValueError, match="no whole checkpoint: put a copy of one back, or --overwrite"
    ):
        saved_steps.newest(three)


def test_damaged_steps_are_set_aside_and_saved_again(three):
    for _ in range(2):
        harm(three, 3)
        saved_steps.quarantine(three, after=saved_steps.newest(three))
        with CheckpointWriter(three, KEPT) as checkpoints:
            checkpoints.save(3, small(7), {})
        assert saved_steps.newest(three) == 3
    np.testing.assert_array_equal(restore(three, 3, small(0))["params"]["w"], 7)
    names = sorted(path.name for path in (three / saved_steps.FOLDER).iterdir())
    assert names == ["1", "2", "3", "3-1.damaged", "3-2.damaged"]


def test_what_a_kill_left_is_cleared_away(three):
    folder = three / saved_steps.FOLDER
    for name in ("4.orbax-checkpoint-tmp", "1.dropped"):
        (folder / name).mkdir()
        (folder / name / "x").touch()
    assert saved_steps.newest(three) == 3
    with CheckpointWriter(three, KEPT):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
