"""The calls of docs/from-the-tutorials.md run in order, on smaller networks and fewer steps."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.text import smallest_model

from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("without_kernels")]

PAGE = (Path(__file__).parents[1] / "docs" / "from-the-tutorials.md").read_text()
PROLOGUE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
SMALLER = {
    r"dj\.ConvUNet\(image_size=32, channels=1\)": (
        "dj.ConvUNet(image_size=32, channels=1, widths=(8,), attention_sizes=(), groups=4)"
    ),
    r"widths=[^)]*\), attention=[^)]*\)": (
        "widths=(8,), attention=(False,), groups=4, layers_per_level=1"
    ),
    r"\bsteps=(?:1000|50)\b": "steps=3",
    r'"[\w-]+/[\w.-]+"': '"stable_diffusion"',
    r"UniPCMultistepScheduler": "DDIMScheduler",
    r"\b64, 64\b": "4, 4",
    # One program instead of one per operation.
    r"\b((?:net\.)?model\.apply|dj\.ddpm\(\)\.step)\(": r"jax.jit(\1)(",
}
"""Patterns in the page's calls, and what the test runs in their place."""


def calls(section: str) -> list[str]:
    """The calls in the right column of a section's table; commands for the shell are left out."""
    cells = re.findall(r"^\| .* \| `([^`]*)` \|$", section, re.MULTILINE)
    return [cell for cell in cells if not cell.startswith("python ")]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Run the prologue and all calls in an empty folder; return the names they define."""
    names: dict = {}
    exec(PROLOGUE, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorials"))
        save_stable_diffusion(smallest_model(), "stable_diffusion")
        for section in SECTIONS:
            for call in calls(section):
                for pattern, smaller in SMALLER.items():
                    call = re.sub(pattern, smaller, call)
                exec(call, names)
    return names


def test_every_row_of_the_tables_has_a_call_here():
    for section in SECTIONS:
        rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
        commands = re.findall(r"^\| .* \| `python [^`]*` \|$", section, re.MULTILINE)
        assert len(calls(section)) + len(commands) == len(rows), section.splitlines()[0]


def test_the_calls_of_the_first_tutorial_noise_train_and_sample(names):
    assert names["states"].shape == (4, 8, 32, 32, 1)
    assert names["output"].shape == (8, 32, 32, 1)
    assert np.abs(names["states"][-1]).max() <= 1
    assert names["rate"](0) == pytest.approx(1e-4)
    assert names["rate"](29_000) == pytest.approx(1e-6)


def test_the_preview_schedule_of_the_second_tutorial_never_reaches_noise(names):
    with pytest.warns(UserWarning, match="alpha_bar ends at 0.0818"):
        schedule = names["short"].noise_schedule
    np.testing.assert_allclose(schedule.alpha_bar[-1], 0.0818, atol=1e-4)


def test_a_saved_pipeline_samples_the_same_images(names):
    first = names["pipeline"](batch_size=8, steps=3, progress=False).images
    again = names["again"](batch_size=8, steps=3, progress=False).images
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_the_commands_name_recipes_that_exist():
    recipes = {path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")}
    named = re.findall(r"python train\.py --config (\w+)", PAGE)
    assert len(named) > 5
    assert set(named) <= recipes


def test_the_calls_of_the_sixth_tutorial_draw_from_a_prompt(names):
    assert names["image"].size == (8, 8)
    assert names["hearts"].shape == (1, 8, 8, 3)
    assert names["heart"].shape == (1, 4, 4)
    np.testing.assert_array_equal(names["ids"][0, :5], [519, 320, 517, 516, 520])
