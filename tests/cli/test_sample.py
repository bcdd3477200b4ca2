"""sample.py as a user runs it: every form of output, its calls of `generate`, and mistakes."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.commands import draw, fails, one_line, run, unboxed
from helpers.saved_runs import RECIPE, random_params, save_run, small_recipe
from PIL import Image

from ddpm_jax import samplers
from ddpm_jax.cli import arguments, sample
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.unet import UNet

pytestmark = pytest.mark.runs

CLASSES = ("1", "2", "10", "ant", "bee", "cat", "dog, puppy", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 4 and 8, whose recipe samples in ten steps."""
    return save_run(tmp_path_factory.mktemp("saved"), RECIPE)


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory) -> Path:
    """A run of a network with ten classes, guided by default."""
    blocks = {"widths": (4,), "attention": (False,), "groups": 2}
    model = UNet(image_size=8, channels=1, num_classes=10, label_dropout=0.5, **blocks)
    config = small_recipe(model=model, sampling=Sampling(guidance_scale=3.0))
    folder = tmp_path_factory.mktemp("with_classes")
    return save_run(folder, config, steps=(1,), classes=CLASSES)


def test_samples_are_written_in_every_form(saved, tmp_path, capsys):
    outs = [tmp_path / name for name in ("grid.png", "all.npz", "path.GIF", "folder")]
    draw(saved, "--num", 5, "--batch-size", 2, "--out", *outs, "--trajectory")
    written = [*outs, tmp_path / "grid_chain.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    images = np.load(outs[1], allow_pickle=False)["images"]
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.std() > 0
    with Image.open(outs[2]) as gif:
        assert gif.n_frames == 11
    files = sorted(outs[3].iterdir())
    assert len(files) == 5
    with Image.open(files[3]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), images[3, :, :, 0])
    with Image.open(tmp_path / "grid_chain.png") as chain, Image.open(outs[0]) as grid:
        assert chain.size > grid.size


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Run sample.py and return its arguments of `generate_shown`, which is replaced."""
    calls = []

    def record(spec, params, **options):
        calls.append(SimpleNamespace(spec=spec, params=params, **options))
        return np.zeros((1, options["num_images"], 8, 8, 1), np.uint8)

    monkeypatch.setattr(sample, "generate_shown", record)

    def ask(ckpt, *args):
        out = [] if "--out" in args else ["--out", tmp_path / "x.npz"]
        draw(ckpt, *args, *out)
        return calls[-1]

    return ask


def test_settings_reach_generate(saved, ask, tmp_path):
    default = ask(saved)
    assert (default.num_images, default.batch_size, default.seed) == (64, 64, 0)
    assert (default.min_chunks, default.trajectory, default.edit) == (20, False, None)
    assert ask(saved, "--num", 3).num_images == 3
    assert ask(saved, "--seed", 1).seed == 1
    assert ask(saved, "--batch-size", 2).batch_size == 2
    for args in (["--trajectory"], ["--out", tmp_path / "path.gif"]):
        call = ask(saved, *args)
        assert (call.min_chunks, call.trajectory) == (50, True), args


def test_weights_and_checkpoint_select_the_parameters(saved, ask):
    model = ask(saved).spec.model
    for args, step, weights in (
        ([], 8, "ema"),
        (["--weights", "raw"], 8, "raw"),
        (["--checkpoint", 4], 4, "ema"),
        (["--checkpoint", "None"], 8, "ema"),
    ):
        params = ask(saved, *args).params
        expected = random_params(model, step, weights)
        jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_labels_are_the_given_ones_or_all(with_classes, ask):
    assert list(ask(with_classes).labels) == list(range(10))
    for given in (["3,5,7"], [3, 5, 7], ["ant,cat,eel"], ["ant", 5, "eel"]):
        assert list(ask(with_classes, "--label", *given).labels) == [3, 5, 7], given
    assert ask(with_classes).spec.sampling.guidance_scale == 3
    assert ask(with_classes, "--guidance-scale", 1).spec.sampling.guidance_scale == 1


def test_sampling_settings_default_to_the_recipe(saved, ask):
    def sampling(*args):
        return ask(saved, *args).spec.sampling

    default = sampling()
    assert (default.sampler, default.steps, default.spacing) == ("ddpm", 10, "trailing")
    assert default.clip_x0
    heun = sampling("--steps", 3, "--spacing", "karras", "--sampler", "heun")
    assert (heun.sampler, heun.steps, heun.spacing) == ("heun", 3, "karras")
    assert sampling("--timesteps", 999, 500, 100.5, 7).timesteps == (999.0, 500.0, 100.5, 7.0)
    unclipped = sampling("--steps", 5, "--no-clip-x0", "--dynamic-threshold", 0.9)
    assert (unclipped.steps, unclipped.clip_x0, unclipped.dynamic_threshold) == (5, False, 0.9)
    assert sampling("--sampler.variance", "fixed_large").options["variance"] == "fixed_large"


def test_a_path_that_cannot_be_written_is_found_before_sampling(
    saved, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sample, "draw_states", lambda *_, **__: pytest.fail("sampled"))
    (tmp_path / "new_chain.png").mkdir()
    (tmp_path / "folder" / "00000.png").mkdir(parents=True)
    cases = [
        (["--out", tmp_path / "x.npz", tmp_path / "folder"], "00000.png is a directory"),
        (["--out", tmp_path / ("x" * 250 + ".gif")], "File name too long"),
        (["--out", tmp_path / "new.png", "--trajectory"], "new_chain.png is a directory"),
    ]
    for args, cause in cases:
        assert cause in one_line(capsys, sample.main, "--ckpt", saved, *args), args


def test_samples_are_saved_elsewhere_if_an_output_fails_late(saved, monkeypatch, tmp_path, capsys):
    """The folder of the first output is replaced by a file while the samples are drawn."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images = np.arange(128, dtype=np.uint8).reshape(1, 2, 8, 8, 1)

    def draw_and_block(*_, **__):
        (tmp_path / "lost").rmdir()
        (tmp_path / "lost").touch()
        return images

    monkeypatch.setattr(sample, "draw_states", draw_and_block)
    outs = [tmp_path / "lost" / "x.npz", tmp_path / "good.npz"]
    message = one_line(capsys, sample.main, "--ckpt", saved, "--num", "2", "--out", *outs)
    (rescued,) = tmp_path.glob("ddpm_jax-*/x.npz")
    assert f"written to {rescued} instead" in message
    for path in (rescued, outs[1]):
        np.testing.assert_array_equal(np.load(path)["images"], images[0])


@pytest.fixture
def image_files(tmp_path) -> dict[str, Path]:
    """Paths by name: two images of 16 px and a mask of their left half."""
    grey = np.add.outer(np.arange(16), np.arange(16)) * 8
    mask = np.where(np.arange(16) < 8, 255, 0)[None].repeat(16, 0)
    paths = {}
    for name, pixels in {"A": grey, "B": grey[::-1], "MASK": mask}.items():
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(paths[name])
    return paths


def test_edit_options_reach_generate(saved, ask, image_files):
    def ask_edit(*args):
        return ask(saved, *(image_files.get(arg, arg) for arg in args))

    varied = ask_edit("--image", "A", "--strength", 0.2, "--num", 3)
    assert (varied.num_images, varied.edit.strength) == (3, 0.2)
    assert varied.edit.images.shape == (1, 8, 8, 1)
    filled = ask_edit("--image", "A", "--mask", "MASK", "--resample", 2, "--jump-length", 3).edit
    assert (filled.repeats, filled.jump_length, filled.masks.shape) == (2, 3, (1, 8, 8, 1))
    between = ask_edit("--image", "A", "B", "--interpolate", "--num", 4)
    assert between.num_images == 4
    np.testing.assert_allclose(between.edit.fractions, [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    noises = ask_edit("--interpolate", "--num", 4).edit
    assert noises.images is None
    assert noises.fractions.shape == (4,)
    inverted = ask_edit("--image", "A", "B", "--invert", "--sampler", "ddim")
    assert inverted.edit.invert
    assert inverted.num_images == 2


def test_a_mistake_is_an_error_of_one_line(saved, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "00064.png").touch()
    cases = [
        (["--num", "3"], ["--ckpt is missing"]),
        (["--ckpt", tmp_path], ["holds neither checkpoints nor"]),
        (["--ckpt", saved, "--checkpoint", "5"], ["no checkpoint of step 5", "4, 8"]),
        (["--ckpt", saved, "--weights", "emma"], ["Unknown weights 'emma'"]),
        (["--ckpt", saved, "--sampler", "dpm"], ["Unknown sampler 'dpm'", "ddpm"]),
        (["--ckpt", saved, "--sampler", "ddim", "--sampler.eta", "-1"], ["eta must be at least 0"]),
        (["--ckpt", saved, "--out", full], ["more numbered pictures than the 64 to be written"]),
        (["--ckpt", saved, "--strength", "0.5"], ["--strength is for an image"]),
        (["--ckpt", saved, "--guidance-scale", "2"], ["Guidance needs a network that was trained"]),
    ]
    for args, words in cases:
        message = one_line(capsys, sample.main, *args)
        assert all(word in message for word in words), (args, message)


def test_a_label_is_a_name_before_it_is_a_number():
    cases = [
        (["1"], [0]),
        (["10", "2"], [2, 1]),
        (["0,3"], [0, 3]),
        (["dog, puppy", "cat"], [6, 5]),
        (["-1"], [-1]),
        ([], []),
    ]
    for words, numbers in cases:
        assert arguments.class_numbers("--label", words, CLASSES) == numbers, words
    unknown = "--label cta is no class of this network: choose one of cat, 1, 2, 10, ant, bee, dog,"
    with pytest.raises(ValueError, match=unknown):
        arguments.class_numbers("--label", ["cta"], CLASSES)
    with pytest.raises(ValueError, match=r"--label three .*: give whole numbers, as in"):
        arguments.class_numbers("--label", ["three"], None)


def test_an_invalid_setting_is_named(saved, capsys):
    cases = (
        ("--num 0", "--num must be at least 1"),
        ("--out x.jpg", "x.jpg"),
        ("--out", "--out names no file"),
    )
    for args, words in cases:
        message = unboxed(fails(capsys, sample.main, "--ckpt", saved, *args.split()))
        assert words in message, args


def test_help_does_not_need_a_run(capsys):
    with pytest.raises(SystemExit) as end:
        run(sample.main, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in ("--num", "--out", "--trajectory", "--image", *samplers.names()):
        assert name in text


def test_help_with_a_network_explains_its_sampling_and_the_sampler(saved, capsys):
    with pytest.raises(SystemExit) as end:
        run(sample.main, "--ckpt", saved, "--sampler", "heun", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for words in ("--steps", "--sampler.compat", "Take Euler's step, then take it again"):
        assert words in text
