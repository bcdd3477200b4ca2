"""train.py and sample.py as scripts: they start without a warning and print no traceback."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import draw
from helpers.saved_runs import save_run, small_recipe
from helpers.text import tiny_model

from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion

pytestmark = pytest.mark.runs

ROOT = Path(__file__).parents[2]
RANDOM_DEFAULTS = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_ENABLE_X64": "1",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEBUG_KEY_REUSE": "1",
}
"""Defaults of JAX that a user may set, none of which changes a draw."""


def run_script(*args: object) -> subprocess.CompletedProcess:
    """Run a script; a warning is an error, and no device is selected."""
    removed = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    command = [sys.executable, "-W", "error", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def start(*args: object) -> str:
    """Run a script that must succeed, and return what it prints."""
    done = run_script(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sample_uses_no_device_before_it_has_read_its_prompt(tmp_path):
    """It chooses the number of CPU devices, then checks the request, then reads the weights."""
    save_stable_diffusion(tiny_model(), tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    options = ["--prompt", "a red heart", "--out", tmp_path / "heart.png"]
    done = run_script("sample.py", "--ckpt", tmp_path, *options)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "holds no weights" in done.stderr


def test_train_uses_no_device_before_it_has_read_its_recipe():
    """After the first use of a device, JAX cannot change the number of virtual CPU devices."""
    options = ["--data", "folder", "--data.path", "my_images", "--model", "basic_unet"]
    printed = start("train.py", "--config", "digits", *options, "--dry-run")
    assert "BasicUNet, 309057 parameters" in printed
    assert "folder: my_images" in printed


def test_sample_draws_from_a_run_whatever_the_random_defaults_of_jax(tmp_path, monkeypatch):
    """Rounding differs, because this process has other devices and optimizations."""
    save_run(tmp_path / "run", small_recipe(), steps=(1,))
    settings = ["--num", 3, "--batch-size", 2, "--steps", 2]
    draw(tmp_path / "run", *settings, "--out", tmp_path / "here.npz")
    for name, value in RANDOM_DEFAULTS.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "there.npz"
    printed = start("sample.py", "--ckpt", tmp_path / "run", *settings, "--out", out)
    assert printed.split() == [str(out)]
    here, there = (np.load(path)["images"].astype(int) for path in (tmp_path / "here.npz", out))
    assert np.abs(here - there).max() <= 1


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
