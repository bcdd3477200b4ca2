"""train.py as a user runs it: the files of a run, exact resume, and what it never deletes."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.bench import losses
from helpers.commands import SMALL, arrays, one_line, run, small_main, train_main
from helpers.saved_runs import RECIPE, save_run
from PIL import Image

from ddpm_jax.runs import checkpoints, export, loop, metrics, saved_steps
from ddpm_jax.runs.directory import load_config
from ddpm_jax.runs.metrics import read_metrics

pytestmark = [
    pytest.mark.runs,
    pytest.mark.usefixtures("without_kernels", "shared_steps", "shared_digits"),
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """An uninterrupted run of 8 steps, with three averages besides the default one."""
    workdir = tmp_path_factory.mktemp("straight")
    options = ["--preview", "--log.samples-every", 4]
    run(small_main, *SMALL, "--training.steps", 8, "--workdir", workdir, *options)
    return workdir


def test_a_run_writes_checkpoints_metrics_pictures_and_its_recipe(straight):
    assert saved_steps.steps(straight) == [4, 8]
    data = {"images": 1797, "classes": list("0123456789")}
    assert [saved_steps.data_at(straight, step) for step in (4, 8)] == [data, data]
    lines = read_metrics(straight / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert {"loss", "grad_norm", "learning_rate"} <= set(line)
    pictures = ("loss", "preview/data", "preview/noise", "samples/00000004", "samples/00000008")
    for name in pictures:
        with Image.open(straight / f"{name}.png") as picture:
            assert min(picture.size) > 1, name
    assert json.loads((straight / "config.json").read_text())["training"]["batch_size"] == 16
    assert list((straight / "tensorboard").iterdir())


def test_resume_matches_an_uninterrupted_run(straight, tmp_path, monkeypatch, capsys):
    """Compare all arrays of the last checkpoint, all snapshots of averages, and all losses."""
    monkeypatch.setattr(metrics, "loss_curve", lambda *_, **__: None)
    command = [*SMALL, "--log.samples", 0, "--workdir", tmp_path]
    for steps in (5, 8):
        run(small_main, *command, "--training.steps", steps)
        assert "classes   0: 0, 1: 1, 2: 2," in capsys.readouterr().out
    assert saved_steps.steps(tmp_path) == [5, 8]
    for uninterrupted, resumed in zip(arrays(straight, 8), arrays(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(uninterrupted, resumed)
    assert losses(tmp_path) == losses(straight)

    snapshots = saved_steps.steps(straight, saved_steps.SNAPSHOTS)
    assert snapshots == saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == [2, 4, 6, 8]
    params = load_config(straight, 8).model.shapes()
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    for step in snapshots:
        folders = [workdir / saved_steps.SNAPSHOTS / str(step) for workdir in (tmp_path, straight)]
        template = {"power_0.05": zeros, "power_0.1": zeros}
        resumed, uninterrupted = (checkpoints.read_trees(folder, template) for folder in folders)
        jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    run(small_main, *command, "--training.steps", 8)
    printed = capsys.readouterr().out
    assert "raise --training.steps" in printed
    assert f"draw samples with: python sample.py --ckpt {tmp_path}\n" in printed


def test_a_run_does_not_depend_on_the_random_defaults_of_jax(straight, tmp_path, monkeypatch):
    """JAX also raises for a key that is used twice. test_draws.py tests jax_enable_x64."""
    monkeypatch.setattr(metrics, "loss_curve", lambda *_, **__: None)
    command = [*SMALL, "--log.samples", 4, "--workdir", tmp_path]
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False), jax.debug_key_reuse(True):
        run(small_main, *command, "--training.steps", 4)
    for usual, unusual in zip(arrays(straight, 4), arrays(tmp_path, 4), strict=True):
        np.testing.assert_array_equal(usual, unusual)
    grids = [workdir / "samples" / "00000004.png" for workdir in (straight, tmp_path)]
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_a_run_of_another_recipe_is_neither_resumed_nor_changed(straight, capsys):
    before = {path: path.stat().st_mtime for path in straight.rglob("*")}
    other = [*SMALL, "--workdir", straight, "--optimizer.learning-rate", 1e-4]
    message = one_line(capsys, small_main, *other)
    assert "optimizer.learning_rate" in message
    assert "--overwrite" in message
    assert {path: path.stat().st_mtime for path in straight.rglob("*")} == before


def test_overwrite_deletes_nothing_if_the_data_are_missing(straight, capsys):
    options = ["--config", "butterflies", "--data.path", "no/such/file", "--no-compilation-cache"]
    message = one_line(capsys, train_main, *options, "--workdir", straight, "--overwrite")
    assert "no/such/file" in message
    assert saved_steps.steps(straight) == [4, 8]


@pytest.fixture
def trainings(monkeypatch) -> list[dict]:
    """The arguments of each call of `loop.train`, which is replaced by a function without steps."""
    calls: list[dict] = []

    def record(config, folder, start, **options):
        calls.append({"config": config, "folder": folder, "start": start, **options})
        return 0

    monkeypatch.setattr(loop, "train", record)
    return calls


def test_the_same_command_resumes_and_overwrite_starts_anew(trainings, tmp_path):
    save_run(tmp_path, RECIPE)
    for more, start in (([], 8), (["--overwrite"], 0)):
        run(small_main, *SMALL, "--workdir", tmp_path, *more)
        call = trainings[-1]
        assert (call["folder"], call["start"]) == (tmp_path, start)
        assert call["overwritten"] == (tmp_path if more else None)
        assert "on_save" not in call


def test_a_run_does_not_start_from_its_own_directory(tmp_path, capsys):
    """With --overwrite it would delete the weights that it starts from."""
    save_run(tmp_path, RECIPE)
    options = ["--workdir", tmp_path, "--init-from", tmp_path, "--overwrite"]
    message = one_line(capsys, small_main, *SMALL, *options)
    assert "is the directory of this run: give another --workdir." in message


def test_a_run_may_start_from_the_run_of_the_same_recipe(trainings, tmp_path, monkeypatch):
    """Without --workdir, it would be in the directory of that run."""
    monkeypatch.chdir(tmp_path)
    save_run(Path("runs/small"), RECIPE)
    run(small_main, *SMALL, "--init-from", "runs/small", "--workdir", "runs/again")
    assert trainings[-1]["folder"] == Path("runs/again")


def test_push_uploads_each_checkpoint(trainings, tmp_path, monkeypatch):
    calls = []

    def make_uploader(*args):
        calls.append(args)
        return print

    monkeypatch.setattr(export, "make_uploader", make_uploader)
    run(small_main, *SMALL, "--workdir", tmp_path, "--push", "us/net", "--private")
    assert calls == [("us/net", True, trainings[0]["config"], tmp_path)]
    assert trainings[0]["on_save"] is print


def test_training_does_not_start_if_its_network_cannot_be_uploaded(tmp_path, capsys):
    settings = ["--push", "a/b", "--workdir", tmp_path / "run"]
    message = one_line(capsys, small_main, *SMALL, *settings)
    assert "ConvUNet cannot be written in the diffusers layout" in message
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_stopped_by_a_signal_exits_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_, **__: 143)
    with pytest.raises(SystemExit) as end:
        run(small_main, *SMALL, "--workdir", tmp_path)
    assert end.value.code == 143
