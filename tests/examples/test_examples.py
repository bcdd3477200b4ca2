"""The scripts of examples/ run with small settings, and what they write and print is right."""

import ast
import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.images import random_images
from PIL import Image

import ddpm_jax

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("without_kernels")]

EXAMPLES = Path(ddpm_jax.__file__).parents[1] / "examples"
SMALLER = {
    "image_size=32": "image_size=16",
    "attention=ATTENTION": "attention=ATTENTION, layers_per_level=1, middle='none', groups=4",
}
"""Settings in the text of the butterflies script, and those that compile and run faster."""
BUTTERFLIES = {
    "WIDTHS": (8,),
    "ATTENTION": (False,),
    "BATCH_SIZE": 8,
    "EPOCHS": 10,
    "SAMPLING_STEPS": 4,
}


def run(name: str, replaced: dict[str, str] | None = None, **constants) -> tuple[dict, str]:
    """Run a script with parts of its text replaced and with other values of its constants.

    Return its global names and its output.
    """
    source = (EXAMPLES / f"{name}.py").read_text()
    for part, replacement in (replaced or {}).items():
        assert part in source, part
        source = source.replace(part, replacement)
    tree = ast.parse(source)
    missing = set(constants)
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        names = [target.id for target in ast.walk(node.targets[0]) if isinstance(target, ast.Name)]
        is_tuple = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        values = node.value.elts if is_tuple else [node.value]
        for i, constant in enumerate(names[: len(values)]):
            if constant in constants:
                values[i] = ast.Name(f"given_{constant}", ast.Load())
                missing.discard(constant)
        if not is_tuple:
            node.value = values[0]
    assert not missing
    code = compile(ast.fix_missing_locations(tree), name, "exec")
    names = {f"given_{constant}": value for constant, value in constants.items()}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return names, printed.getvalue()


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_every_script_but_the_corruption_tutorial_has_fewer_than_60_lines():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 5
    for script in scripts:
        lines = len(script.read_text().splitlines())
        assert lines < 60 or script.name == "corruption.py", script.name


@pytest.fixture(scope="module")
def butterflies(tmp_path_factory):
    """Run the butterflies script on eight images; return its names, its output and its folder."""
    folder = tmp_path_factory.mktemp("butterflies")
    (folder / "images").mkdir()
    for i, pixels in enumerate(random_images(8, 40, 36, 3)):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    out = folder / "out"
    data = str(folder / "images")
    return *run("butterflies", SMALLER, DATA=data, OUT=out, **BUTTERFLIES), out


def test_butterflies_writes_a_batch_its_noise_levels_a_loss_plot_and_two_sets_of_samples(
    butterflies,
):
    _, _, out = butterflies
    grid = size_of(out / "batch.png")
    assert grid == size_of(out / "noise.png")
    assert grid == size_of(out / "pipeline.png")
    assert grid == size_of(out / "loop.png")
    assert size_of(out / "loss.png")[0] > 1000  # two panels, linear and logarithmic


def test_butterflies_last_noise_level_is_noise_and_its_first_is_the_image(butterflies):
    names, _, _ = butterflies
    x0, noisy = np.asarray(names["x0"]), np.asarray(names["noisy"])
    assert np.abs(noisy[0] - x0[0]).max() < 0.1
    assert abs(np.corrcoef(noisy[-1].ravel(), x0[-1].ravel())[0, 1]) < 0.1


def test_the_explicit_loop_samples_what_the_pipeline_samples(butterflies):
    _, _, out = butterflies
    with Image.open(out / "pipeline.png") as pipeline, Image.open(out / "loop.png") as loop:
        difference = np.abs(np.asarray(pipeline, int) - np.asarray(loop, int))
    assert difference.max() <= 1


def test_butterflies_prints_the_mean_loss_of_every_fifth_epoch(butterflies):
    names, printed, _ = butterflies
    assert len(names["losses"]) == 10  # epochs of one step
    expected = [f"Epoch {epoch}, mean loss {names['losses'][epoch - 1]:.5f}" for epoch in (5, 10)]
    assert [line for line in printed.splitlines() if "mean loss" in line] == expected


def test_own_sampler_has_less_than_half_the_error_of_ddim():
    _, printed = run("own_sampler", NUM_SAMPLES=64, STEPS=(25, 50))
    lines = printed.splitlines()
    errors = np.array([[float(x) for x in re.findall(r"\d\.\d{5}", line)] for line in lines])
    assert errors.shape == (2, 2)
    assert np.all(errors[:, 1] < errors[:, 0] / 2)


def test_own_network_learns_and_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, printed = run("own_network", WIDTH=64, STEPS=60, BATCH_SIZE=32)
    assert float(printed.split()[-1]) < 0.7
    assert size_of(tmp_path / "runs" / "own_network.png")[0] > 300
