"""train.py and sample.py as scripts: they start without a warning and print no traceback."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.saved_runs import save_run, small_recipe

ROOT = Path(__file__).parents[2]


def start(*args: object) -> str:
    """Run a script and return what it prints; a warning is an error, and no device is selected."""
    removed = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    command = [sys.executable, "-W", "error", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_uses_no_device_before_it_has_read_its_recipe():
    """After the first use of a device, JAX cannot change the number of virtual CPU devices."""
    options = ["--data", "folder", "--data.path", "my_images", "--model", "basic_unet"]
    printed = start("train.py", "--config", "digits", *options, "--dry-run")
    assert "BasicUNet, 309057 parameters" in printed
    assert "folder: my_images" in printed


def test_sample_draws_from_a_run(tmp_path):
    save_run(tmp_path / "run", small_recipe(), steps=(1,))
    out = tmp_path / "x.png"
    settings = ["--num", 2, "--steps", 2, "--out", out]
    assert start("sample.py", "--ckpt", tmp_path / "run", *settings).split() == [str(out)]
    assert out.stat().st_size > 0


def test_a_mistake_prints_one_line_and_no_traceback(capsys, monkeypatch):
    cases = [("train.py", ["--config", "digitz"]), ("sample.py", ["--ckpt", "nowhere"])]
    for name, mistake in cases:
        monkeypatch.setattr(sys, "argv", [name, *mistake])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert end.value.code == 2, name
        message = capsys.readouterr().err
        assert message.startswith("error: "), message
        assert message.count("\n") == 1, message
