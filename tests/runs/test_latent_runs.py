"""train.py on captions: an autoencoder's run, then a run on its latents; drawing and exporting."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.bench import losses
from helpers.commands import SMALL, arrays, draw, run, small_main
from helpers.latent_runs import AUTOENCODER, COLOURS, CONFIG, TEXT_UNET, captioned_images
from helpers.saved_runs import save_run
from safetensors.numpy import load_file

from ddpm_jax import evaluate, export, statistics
from ddpm_jax.config import config_to_json
from ddpm_jax.latent_config import read_config
from ddpm_jax.pretrained.stable_diffusion import load_stable_diffusion
from ddpm_jax.runs import loop, saved_steps
from ddpm_jax.runs.sources import RunSource, open_run
from ddpm_jax.runs.text_model import open_text_model
from ddpm_jax.text_to_image.draw import draw_pixels
from ddpm_jax.text_to_image.request import Request

pytestmark = [
    pytest.mark.runs,
    pytest.mark.usefixtures("without_kernels", "without_curves", "shared_steps"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return captioned_images(tmp_path_factory.mktemp("images"))


def train(images, workdir, *options):
    """Run train.py with the small recipe."""
    command = ["--config", "latent", "--no-compilation-cache", "--data.path", images]
    run(small_main, *command, "--workdir", workdir, *options)


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory) -> Path:
    """An uninterrupted run: 4 steps of the autoencoder, and 8 steps of the network."""
    workdir = tmp_path_factory.mktemp("straight")
    train(images, workdir)
    return workdir


def draw_prompts(model, sampling=None):
    request = Request(prompts=["red square", "blue"], seed=3)
    return draw_pixels(model, request, sampling or model.sampling, batch_size=2)


def own_model(workdir):
    """The model of a run, with its averaged parameters."""
    source = open_run(str(workdir))
    return open_text_model(source, source.params("ema"))


def test_one_command_leaves_two_runs_and_the_files_between_them(straight):
    assert saved_steps.steps(straight / "autoencoder") == [4]
    assert saved_steps.steps(straight) == [4, 8]
    for grid in ("autoencoder/samples/00000004.png", "samples/00000008.png"):
        assert (straight / grid).stat().st_size > 0
    vocabulary = json.loads((straight / "tokenizer" / "vocab.json").read_text())
    assert len(vocabulary) <= CONFIG.model.vocab_size
    with np.load(straight / "latents.npz") as file:
        saved = file["latents"]
    scale = saved_steps.data_at(straight, 8)["scaling_factor"]
    assert saved.shape == (2 * len(COLOURS), *AUTOENCODER.latent_shape)
    assert scale * saved.std() == pytest.approx(1)


def test_the_config_of_a_latent_run_survives_json():
    assert read_config(json.loads(json.dumps(config_to_json(CONFIG)))) == CONFIG


def test_resume_matches_an_uninterrupted_run(straight, images, tmp_path, capsys):
    """Continue the network from step 4, after the file of latents was lost."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "latents.npz").unlink()
    train(images, workdir, "--log.samples", 0)
    assert "4 steps from 4 to 8" in capsys.readouterr().out
    for uninterrupted, resumed in zip(arrays(straight, 8), arrays(workdir, 8), strict=True):
        np.testing.assert_array_equal(uninterrupted, resumed)
    assert losses(straight) == losses(workdir)


def test_overwrite_removes_both_runs_at_the_first_step_and_not_before(
    straight, images, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    before = sorted(workdir.rglob("*"))
    left = []

    def too_large(*_):
        raise MemoryError("The step needs 9 GiB.")

    def stop_at_first_step(*_):
        left.extend(path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
        return 0, signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_memory", too_large)
        assert "Out of memory" in last_line(capsys, train, images, workdir, "--overwrite")
    assert sorted(workdir.rglob("*")) == before
    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_memory", lambda *_: None)
        patch.setattr(loop, "run_steps", stop_at_first_step)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            train(images, workdir, "--overwrite")
    assert {path.name for path in left} == {"config.json", ".lock"}


def last_line(capsys, command, *args) -> str:
    """Run a command that must exit with status 2; return the last line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(*args)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_another_autoencoder_refuses_to_resume(straight, images, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    resume = partial(last_line, capsys, partial(train, images, workdir))
    message = resume("--autoencoder.training.steps", 8)
    assert "was trained on the autoencoder as it is: leave --autoencoder" in message
    assert saved_steps.steps(workdir / "autoencoder") == [4]
    shutil.rmtree(workdir / "autoencoder")
    save_run(workdir / "autoencoder", CONFIG.autoencoder_config, steps=(4,), classes=None)
    message = f"Step 8 of {workdir} was trained on other weights than those in"
    assert message in resume("--training.steps", 9)
    assert saved_steps.steps(workdir) == [4, 8]
    assert message in last_line(capsys, partial(draw, workdir), "--prompt", "red")


def test_a_run_draws_prompts_with_its_own_sampling(straight, tmp_path):
    out = tmp_path / "drawn.npz"
    draw(straight, "--prompt", "red square", "blue", "--seed", 3, "--out", out)
    images = np.load(out, allow_pickle=False)["images"]
    assert images.shape == (2, 8, 8, 3)
    drawn = draw_prompts(own_model(straight))
    np.testing.assert_array_equal(images, np.rint((drawn.clip(-1, 1) + 1) * 127.5))


def test_an_export_draws_the_same_images(straight, tmp_path, capsys):
    out = tmp_path / "pipeline"
    run(export.main, "--ckpt", straight, "--out", out)
    text = (out / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in text
    assert "AutoPipelineForText2Image" in text
    assert "guidance_scale=3).images" in text
    assert f"A text encoder and a U-Net of {TEXT_UNET.parameter_count():,} parameters with" in text
    assert f"an autoencoder of {AUTOENCODER.parameter_count():,} that draw colour images" in text
    exported = load_stable_diffusion(out)
    sampling = exported.sampling.override(steps=4, guidance_scale=3.0)
    theirs = draw_prompts(exported, sampling)
    np.testing.assert_allclose(draw_prompts(own_model(straight)), theirs, atol=1e-5)


def drawn(ckpt, out, *options) -> np.ndarray:
    """The images that sample.py draws of two prompts."""
    draw(ckpt, "--prompt", "red square", "blue", "--seed", 3, "--out", out, *options)
    return np.load(out, allow_pickle=False)["images"].astype(int)


def test_a_lora_on_a_run_is_drawn_exported_alone_and_merged(straight, images, tmp_path):
    """The checkpoint holds the LoRA, its average, and two moments of it."""
    style = tmp_path / "style"
    options = "--lora.rank 2 --lora.targets attention conv --optimizer.learning-rate 0.03".split()
    options += ["--log.samples", 0]
    train(images, style, "--init-from", straight, "--training.steps", 4, *options)
    file = tmp_path / "style.safetensors"
    run(export.main, "--ckpt", style, "--out", file)
    size = sum(tensor.size for tensor in load_file(file).values())
    assert sum(leaf.size for leaf in arrays(style, 4) if leaf.ndim) == 4 * size
    run(export.main, "--ckpt", style, "--out", tmp_path / "merged")
    out = tmp_path / "drawn.npz"
    expected = drawn(style, out)
    assert np.abs(expected - drawn(straight, out)).max() > 10
    for ckpt, options in ((straight, ("--lora", file)), (tmp_path / "merged", ())):
        assert np.abs(drawn(ckpt, out, *options) - expected).max() <= 1


def test_a_request_that_does_not_fit_is_found_before_the_weights_are_read(
    straight, images, capsys, monkeypatch
):
    monkeypatch.setattr(RunSource, "params", lambda *_: pytest.fail("The weights were read."))
    image = ("--image", images / "red-square.png")
    for options, message in (
        (("--height", 9), "height must be a multiple of 2 pixels, not 9"),
        ((*image, "--strength", 0.001), "Strength 0.001 leaves none of 4 steps"),
        (("--clip-skip", 1), "it can skip 0 to 0 of them, not 1"),
    ):
        assert message in last_line(capsys, partial(draw, straight), "--prompt", "red", *options)


def test_mistakes_end_in_one_line_before_anything_is_written(straight, images, tmp_path, capsys):
    workdir = tmp_path / "new"
    trains = partial(last_line, capsys, partial(train, images, workdir))
    assert "--data.caption-column" in trains("--data.caption-column", "None")
    assert "group, text" in trains("--data.caption-column", "title")
    assert "latents of (4, 4, 4)" in trains("--model.channels", 8)
    assert "cannot be flipped" in trains("--data.flip")
    assert "python -m ddpm_jax.export --push" in trains("--push", "owner/name")
    small = partial(run, small_main, *SMALL, "--workdir", workdir)
    assert "go together" in last_line(capsys, small, "--model", "text_unet")
    assert not workdir.exists()
    draws = last_line(capsys, partial(draw, straight / "autoencoder"))
    assert "the run of an autoencoder, which does not denoise" in draws
    for measure in (evaluate.main, statistics.main):
        for folder in (straight, straight / "autoencoder"):
            message = last_line(capsys, run, measure, "--ckpt", folder)
            assert "is the run of an autoencoder or on latents" in message
    options = ["--prompt", "x", "--variant", "fp16"]
    assert "leave out --variant" in last_line(capsys, partial(draw, straight), *options)
