"""train.py and sample.py as scripts: they start without a warning, and show no traceback."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.saved_runs import save_run, small_recipe

ROOT = Path(__file__).parents[2]


def start(*args: object) -> str:
    """What a script prints in a process where a warning is an error and no device was chosen."""
    chosen = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "-W", "error", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_reads_its_recipe_before_the_first_use_of_a_device():
    """JAX refuses to set the number of virtual CPU devices once one was used."""
    chosen = ["--data", "folder", "--data.path", "pictures", "--model", "basic_unet"]
    said = start("train.py", "--config", "digits", *chosen, "--dry-run")
    assert "BasicUNet, 309057 parameters" in said
    assert "folder: pictures" in said


def test_sample_draws_a_run(tmp_path):
    save_run(tmp_path / "run", small_recipe(), steps=(1,))
    out = tmp_path / "x.png"
    settings = ["--num", 2, "--steps", 2, "--out", out]
    assert start("sample.py", "--ckpt", tmp_path / "run", *settings).split() == [str(out)]
    assert out.stat().st_size > 0


def test_a_mistake_shows_one_line_and_no_traceback(capsys, monkeypatch):
    cases = [("train.py", ["--config", "digitz"]), ("sample.py", ["--ckpt", "nowhere"])]
    for name, mistake in cases:
        monkeypatch.setattr(sys, "argv", [name, *mistake])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert end.value.code == 2, name
        message = capsys.readouterr().err
        assert message.startswith("error: "), message
        assert message.count("\n") == 1, message
