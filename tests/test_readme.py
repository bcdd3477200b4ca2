"""The README's scripts run, and it names only what is there."""

import ast
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import train_main
from helpers.saved_runs import save_run
from PIL import Image

from ddpm_jax.cli.recipes import load_recipe, recipe_files
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.pipeline_folder import save_pretrained

pytestmark = pytest.mark.runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORTER = {
    r"in range\(\d+\)": "in range(STEPS)",
    r"steps=\d+": "steps=5",
    r'"widths": \(16, 32\)': '"widths": (8,)',
    r"\(False, False\)": "(False,)",
}
"""Parts of the first script that take long, and what takes their place here."""


def test_the_first_script_trains_and_draws(tmp_path, monkeypatch, capsys):
    """Run the script with fewer steps and levels. A network whose output is 0 has a loss of 1."""
    script = SCRIPTS[0]
    for pattern, short in SHORTER.items():
        script, count = re.subn(pattern, short, script)
        assert count == 1, pattern
    monkeypatch.chdir(tmp_path)
    exec(script, {"STEPS": 40})
    loss = float(capsys.readouterr().out.split()[-1])
    assert loss < 0.5
    with Image.open(tmp_path / "digits.png") as picture:
        assert np.asarray(picture).std() > 20


def test_the_first_script_is_the_example():
    example = (ROOT / "examples" / "train_by_hand.py").read_text()
    docstring = ast.parse(example).body[0]
    body = "\n".join(example.splitlines()[docstring.end_lineno :]).strip()
    assert SCRIPTS[0].strip() == body


def test_the_data_snippet_makes_a_recipe():
    names: dict = {}
    exec(SCRIPTS[1], names)
    assert names["config"].data.describe() == "folder: my_images"


def test_the_snippet_on_diffusers_draws(tmp_path, monkeypatch, capsys):
    """On a tiny pipeline."""
    small = {"widths": (4,), "attention": (False,), "layers_per_level": 1, "groups": 2}
    model = UNet(image_size=8, channels=1, **small)
    recipe = ModelSpec(model=model, objective=Objective())
    save_pretrained(recipe, model.init(jax.random.key(0)), tmp_path / "my_pipeline")
    monkeypatch.chdir(tmp_path)
    assert "steps=50" in SCRIPTS[2]
    exec(SCRIPTS[2].replace("steps=50", "steps=5"), {})
    for name in ("first.png", "quick.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (8, 8)
    assert capsys.readouterr().out.startswith("(2, 8, 8, 1) ")


COMMANDS = re.findall(
    r"^python train\.py ([^#`]*?)(?:  +#.*)?$", README.replace("\\\n", " "), re.MULTILINE
)


ELSEWHERE = ("help", "data.path", "init-from", "push")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not any(f"--{word}" in c for word in ELSEWHERE)]
)
def test_the_training_commands_make_recipes(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry = [] if "--dry-run" in command else ["--dry-run"]
    train_main([*command.split(), *dry, "--no-compilation-cache"])
    assert "parameters" in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked")
def test_the_training_command_of_a_lora_makes_a_recipe(tmp_path, monkeypatch, capsys):
    """It starts from the run of the recipe that it names, and its data are a folder of the user."""
    (command,) = [command for command in COMMANDS if "--init-from runs/digits" in command]
    monkeypatch.chdir(tmp_path)
    save_run(Path("runs/digits"), load_recipe("digits"))
    train_main([*command.split(), "--dry-run", "--no-compilation-cache"])
    assert "rank 4 in" in capsys.readouterr().out
    assert len(COMMANDS) > 8


def test_every_recipe_and_file_is_named():
    for name in recipe_files(ROOT / "configs"):
        assert f"`{name}`" in README
    for path in re.findall(r"`(ddpm_jax/\S+?)`", README):
        assert (ROOT / path).exists(), path


def test_pages_name_only_files_that_exist():
    named = r"\b((?:ddpm_jax|tests|benchmarks|configs)/[\w/]+\.(?:py|txt))\b"
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        paths = {path for path in re.findall(named, page.read_text()) if "mine" not in path}
        assert [path for path in paths if not (ROOT / path).exists()] == [], page
