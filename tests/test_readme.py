"""The README's script runs as it stands, and names only what is there."""

import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import train_main
from helpers.pretrained import fixture
from PIL import Image

from ddpm_jax.cli import arguments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_script_trains_and_draws(tmp_path):
    script = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(script.splitlines()) < 40
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.5
    with Image.open(tmp_path / "digits.png") as picture:
        assert np.asarray(picture).std() > 20


def test_the_data_snippet_makes_a_recipe():
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names: dict = {}
    exec(snippet, names)
    assert names["config"].data.describe() == "folder: my_pictures"


def test_the_snippet_on_diffusers_draws(tmp_path, monkeypatch):
    fixture("ddpm", tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    monkeypatch.chdir(tmp_path)
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[2].replace("my_pipeline", str(tmp_path))
    exec(snippet.replace("steps=50", "steps=2"), {"xt": jnp.zeros((2, 8, 8, 1)), "t": jnp.array([3, 999])})
    for name in ("first.png", "quick.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (8, 8)


COMMANDS = re.findall(r"^python train\.py ([^#`]*?)(?:  +#.*)?$", README.replace("\\\n", " "), re.MULTILINE)


ELSEWHERE = ("help", "data.path", "init-from", "push")


@pytest.mark.parametrize("command", [c for c in COMMANDS if not any(f"--{word}" in c for word in ELSEWHERE)])
def test_the_training_commands_make_recipes(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_main([*command.split(), *([] if "--dry-run" in command else ["--dry-run"]), "--no-compilation-cache"])
    assert "parameters" in capsys.readouterr().out
    assert len(COMMANDS) > 8


def test_every_recipe_and_file_is_named():
    for name in arguments.recipes(ROOT / "configs"):
        assert f"`{name}`" in README
    for path in re.findall(r"`(ddpm_jax/\S+?)`", README):
        assert (ROOT / path).exists()
