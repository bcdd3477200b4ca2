"""A run that trains a LoRA: what it saves, how it resumes, which base it takes, its export."""

import dataclasses
import shutil

import numpy as np
import pytest
from helpers.commands import arrays, fails, one_line, run, small_main, unboxed
from helpers.nets import by_path
from helpers.saved_runs import NET, random_params, save_run, small_recipe
from helpers.training import assert_close, assert_same

from ddpm_jax import export
from ddpm_jax.cli import sample
from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.pretrained.lora_files import load_lora
from ddpm_jax.runs import loop, saved_steps
from ddpm_jax.runs.initial_weights import load_base
from ddpm_jax.runs.progress import Reporter
from ddpm_jax.runs.provenance import weights_hash
from ddpm_jax.runs.sources import open_run
from ddpm_jax.training.lora import Lora, find_targets, merge_lora

pytestmark = [
    pytest.mark.runs,
    pytest.mark.usefixtures("without_kernels", "without_curves", "shared_steps", "shared_digits"),
]

TARGETS = ("linear", "conv")
PATHS = find_targets(NET.shapes(), TARGETS)
LORA = Lora(rank=2, alpha=1.0, targets=TARGETS)


def recipe(base, steps=4, **settings):
    """A LoRA on a run, on one device."""
    training = Training(batch_size=16, steps=steps, init_from=str(base))
    return small_recipe(
        training=training,
        lora=LORA,
        checkpoint=Checkpoint(every=2),
        log=Log(every=1, samples=1),
        **settings,
    )


@pytest.fixture(scope="module")
def drawn():
    """{folder: parameters} of the last grid of samples of each run, which is not drawn."""
    return {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, drawn):
    """A folder with a run `base`, a LoRA run `style` of 4 steps, and `resumed` of 2 and 2."""
    folder = tmp_path_factory.mktemp("lora")
    base = save_run(folder / "base", small_recipe())

    def record(reporter, step, params):
        drawn[reporter._workdir] = params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "_draw_grid", record)
        loop.train(recipe(base), folder / "style", 0)
        loop.train(recipe(base, steps=2), folder / "resumed", 0)
        loop.train(recipe(base), folder / "resumed", 2)
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one(runs):
    for ours, theirs in zip(arrays(runs / "style", 4), arrays(runs / "resumed", 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_holds_the_lora_alone_and_the_hash_of_its_base(runs):
    """The LoRA, its average, and two moments of it."""
    shapes = {path: leaf.shape for path, leaf in by_path(random_params(NET)).items()}
    numbers = sum(LORA.rank * (np.prod(shapes[path][:-1]) + shapes[path][-1]) for path in PATHS)
    assert sum(x.size for x in arrays(runs / "style", 4) if x.ndim) == 4 * numbers
    base = saved_steps.data_at(runs / "style", 4)["base"]
    assert base == weights_hash(random_params(NET, 8, "ema"))


def test_the_parameters_of_a_run_are_those_of_its_base_with_the_lora(runs, drawn):
    source = open_run(str(runs / "style"))
    base = random_params(NET, 8, "ema")
    params = source.params("raw")
    changed = {path for path, x in by_path(params).items() if (x != by_path(base)[path]).any()}
    assert changed == set(PATHS)
    file = runs / "style.safetensors"
    run(export.main, "--ckpt", runs / "style", "--weights", "raw", "--out", file)
    exported = load_lora(file, {"unet": NET})["unet"]
    assert set(exported) == set(PATHS)
    assert_close(merge_lora(base, exported), params)
    assert_close(drawn[runs / "style"], source.params("ema"))
    # A LoRA on a LoRA run takes the merged parameters for its base.
    stacked = dataclasses.replace(recipe(runs / "style"), lora=Lora(rank=1, targets=TARGETS))
    assert load_base(stacked, runs / "none", 0).hash == weights_hash(source.params("ema"))


def test_samples_are_drawn_with_files_of_loras(runs, monkeypatch):
    given = []

    def record(spec, params, *_, **__):
        given.append(params)
        return np.zeros((1, 1, 8, 8, 1), np.uint8)

    monkeypatch.setattr(sample, "draw_states", record)
    file = runs / "style.safetensors"
    run(export.main, "--ckpt", runs / "style", "--out", file, "--overwrite")
    command = [sample.main, "--no-compilation-cache", "--num", 1, "--out", runs / "x.npz"]
    run(*command, "--ckpt", runs / "style")
    run(*command, "--ckpt", runs / "base", "--lora", file)
    assert_close(given[1], given[0])
    run(*command, "--ckpt", runs / "style", "--lora", f"{file}:-0.25", f"{file}:-0.75")
    assert_close(given[2], random_params(NET, 8, "ema"))


def test_mistakes_end_in_one_line(runs, tmp_path, capsys):
    to_sample = (sample.main, "--ckpt", runs / "style", "--no-compilation-cache", "--lora")
    message = one_line(capsys, *to_sample, "none.safetensors:0.5")
    assert "There is no LoRA file none.safetensors: check --lora." in message
    (tmp_path / "style.safetensors").touch()
    message = one_line(capsys, *to_sample, f"{tmp_path}/style.safetensors:strong")
    assert "the scale 'strong', which is no number: give PATH:SCALE" in message
    message = one_line(
        capsys, export.main, "--ckpt", runs / "base", "--out", tmp_path / "new.safetensors"
    )
    assert "trained no LoRA, but all parameters: give a folder as --out." in message
    out = tmp_path / "style.safetensors"
    message = one_line(capsys, export.main, "--ckpt", runs / "style", "--out", out)
    assert "exists already: choose another --out, or add --overwrite." in message


def test_training_needs_a_base_and_targets_that_it_has(runs, tmp_path, capsys):
    command = (small_main, "--config", "small", "--no-compilation-cache", "--workdir", tmp_path)
    message = one_line(capsys, *command, "--lora.rank", 4)
    assert "give --init-from, or leave out --lora.rank." in message
    command += ("--init-from", runs / "base", "--lora.rank", 4)
    message = one_line(capsys, *command, "--dry-run")
    assert "The LoRA target 'attention' matches no layer: choose attention, linear" in message
    message = unboxed(fails(capsys, *command, "--push", "owner/name"))
    assert "A LoRA run cannot --push while it trains" in message


def test_another_base_is_refused(runs, tmp_path):
    """By a resumed run, and by everything that reads its parameters."""
    base = shutil.copytree(runs / "base", tmp_path / "base")
    style = shutil.copytree(runs / "style", tmp_path / "style")
    config = recipe(base, steps=6)
    for folder in (style / "config.json", style / "checkpoints" / "4" / "config" / "metadata"):
        folder.write_text(folder.read_text().replace(str(runs / "base"), str(base)))
    moved = open_run(str(style), 2)._replace(step=4, config=config)
    assert_same(moved.params("ema"), open_run(str(runs / "style")).params("ema"))
    save_run(base, small_recipe(), steps=(9,))
    message = f"Step 4 of {style} was trained on other weights than those in {base} now"
    with pytest.raises(ValueError, match=message):
        moved.params("ema")
    with pytest.raises(ValueError, match=message):
        loop.train(config, style, 4)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="base"):
        moved.params("ema")
