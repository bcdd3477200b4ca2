"""One run as a user meets it: what it leaves, exact resume, its pictures and edits, mistakes in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import TINY, arrays, draw, fails, one_line, run, train_main, unboxed
from PIL import Image

from ddpm_jax.cli import sample
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("optimized")


def size(path: Path) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run of 8 steps without a stop."""
    workdir = tmp_path_factory.mktemp("straight")
    run(train_main, *TINY, "--training.steps", 8, "--workdir", workdir, "--preview", "--log.samples-every", 4)
    return workdir


def test_a_run_leaves_what_it_promises(straight):
    assert saved_steps.steps(straight) == [4, 8]
    assert [line["step"] for line in read_metrics(straight / "metrics.jsonl")] == list(range(1, 9))
    assert all({"loss", "grad_norm", "learning_rate"} <= set(line) for line in read_metrics(straight / "metrics.jsonl"))
    for name in ("loss.png", "preview/data.png", "preview/noise.png", "samples/00000004.png", "samples/00000008.png"):
        assert min(size(straight / name)) > 1
    assert json.loads((straight / "config.json").read_text())["training"]["batch_size"] == 16
    assert list((straight / "tensorboard").iterdir())


def test_resume_is_bitwise_exact(straight, tmp_path, capsys):
    run(train_main, *TINY, "--training.steps", 4, "--workdir", tmp_path)
    run(train_main, *TINY, "--training.steps", 8, "--workdir", tmp_path)
    for whole, resumed in zip(arrays(straight, 8), arrays(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(whole, resumed)
    losses = [[line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (straight, tmp_path)]
    assert losses[0] == losses[1]
    capsys.readouterr()
    run(train_main, *TINY, "--training.steps", 8, "--workdir", tmp_path)
    assert "raise --training.steps" in capsys.readouterr().out


def test_another_recipes_run_is_neither_resumed_nor_lost(straight, tmp_path, capsys):
    before = {path: path.stat().st_mtime for path in straight.rglob("*")}
    message = one_line(capsys, train_main, *TINY, "--workdir", straight, "--optimizer.learning-rate", 1e-4)
    assert "optimizer.learning_rate" in message
    assert "--overwrite" in message
    assert {path: path.stat().st_mtime for path in straight.rglob("*")} == before


def test_overwrite_loses_nothing_where_it_fails(straight, capsys):
    bad = ["--config", "butterflies", "--data.path", "no/such/file", "--workdir", straight, "--no-compilation-cache"]
    one_line(capsys, train_main, *bad, "--overwrite")
    assert saved_steps.steps(straight) == [4, 8]


def test_steps_that_are_not_finite_end_a_run_in_one_line(tmp_path, capsys):
    blown = ["--optimizer.learning-rate", 1e30, "--training.max-skipped", 3, "--training.steps", 20]
    with pytest.raises(SystemExit) as end:
        train_main([*map(str, [*TINY, *blown, "--workdir", tmp_path])])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    message = said.splitlines()[-1]
    assert re.match(r"error: loss or gradient was not finite in 3 steps in a row, up to step \d+: lower", message)


@pytest.fixture(scope="module")
def by_class(tmp_path_factory) -> Path:
    """A run of eight steps with classes, some of them hidden, and guidance by default."""
    workdir = tmp_path_factory.mktemp("by_class")
    classes = ["--model.num-classes", 10, "--model.label-dropout", 0.5, "--sampling.guidance-scale", 3]
    run(train_main, *TINY, *classes, "--training.steps", 8, "--workdir", workdir)
    return workdir


def test_labels_and_guidance(by_class, tmp_path):
    def images(name, *args):
        draw(by_class, "--num", 3, "--weights", "raw", "--out", tmp_path / name, *args)
        return np.load(tmp_path / name)["images"].astype(int)

    some = images("a.npz", "--label", "3,5,7")
    assert some.shape == (3, 8, 8, 1)
    assert np.abs(some - images("b.npz", "--label", 3, 5, 7)).max() <= 1
    others = np.abs(some - images("c.npz", "--label", "3,5,8")).max((1, 2, 3))
    assert others[:2].max() <= 1 < others[2]
    assert np.abs(some - images("d.npz", "--label", "3,5,7", "--guidance-scale", 1)).max() > 1


def test_pictures_in_every_form(straight, tmp_path):
    outs = [tmp_path / name for name in ("grid.png", "all.npz", "path.gif", "folder")]
    draw(straight, "--num", 5, "--batch-size", 2, "--out", *outs, "--trajectory")
    images = np.load(outs[1], allow_pickle=False)["images"]
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    with Image.open(outs[2]) as gif:
        assert gif.n_frames == 11
    files = sorted(outs[3].iterdir())
    assert len(files) == 5
    with Image.open(files[3]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), images[3, :, :, 0])
    assert size(tmp_path / "grid_chain.png") > size(outs[0])


def test_a_sample_depends_on_its_seed_and_index_alone(straight, tmp_path):
    def images(name, *args):
        draw(straight, "--out", tmp_path / name, *args)
        return np.load(tmp_path / name)["images"].astype(int)

    eight = images("a.npz", "--num", 8)
    assert np.abs(eight[:3] - images("b.npz", "--num", 3, "--batch-size", 1)).max() <= 1
    assert np.abs(eight - images("c.npz", "--num", 8, "--seed", 1)).max() > 1
    assert np.abs(eight - images("d.npz", "--num", 8, "--weights", "raw")).max() > 1
    assert np.abs(eight - images("e.npz", "--num", 8, "--sampler.variance", "fixed_large")).max() > 1
    assert np.abs(eight - images("f.npz", "--num", 8, "--checkpoint", 4)).max() > 1


def test_sampling_settings_are_the_recipes_unless_given(straight, tmp_path, capsys):
    def steps(*args):
        capsys.readouterr()
        draw(straight, "--num", 1, "--out", tmp_path / "x.npz", *args)
        return int(re.search(r"1 pictures, (\d+) steps", capsys.readouterr().err)[1])

    assert steps() == 10
    assert steps("--steps", 3, "--spacing", "karras", "--sampler", "heun") == 3
    assert steps("--timesteps", 999, 500, 100.5, 7) == 4
    assert steps("--steps", 5, "--no-clip-x0", "--dynamic-threshold", 0.9) == 5


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """Two pictures of 16 px and a mask of their left half, one of another size, by name."""
    grey = np.add.outer(np.arange(16), np.arange(16)) * 8
    mask = np.where(np.arange(16) < 8, 255, 0)[None].repeat(16, 0)
    paths = {}
    for name, pixels in {"A": grey, "B": grey[::-1], "MASK": mask, "SMALL": mask[:8]}.items():
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(paths[name])
    return paths


def test_editing_pictures(straight, pictures, tmp_path):
    def images(*args):
        draw(straight, "--out", tmp_path / "x.npz", *(pictures.get(arg, arg) for arg in args))
        return np.load(tmp_path / "x.npz")["images"].astype(int)

    with Image.open(pictures["A"]) as picture:
        small = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR), int)[..., None]
    varied = images("--image", "A", "--strength", 0.2, "--num", 3)
    assert np.abs(varied[0] - varied[1]).max() > 1
    assert np.abs(varied[0] - images("--image", "A", "--strength", 0.2, "--num", 1)[0]).max() <= 1
    kept = images("--image", "A", "--mask", "MASK", "--resample", 2, "--jump", 3, "--num", 3)
    np.testing.assert_array_equal(kept[:, :, 4:], small[None, :, 4:].repeat(3, 0))
    assert np.abs(kept[:, :, :4] - small[:, :4]).max() > 1
    between = images("--image", "A", "B", "--interpolate", "--num", 4)
    assert np.abs(between[0] - between[3]).max() > 1
    assert images("--interpolate", "--num", 4).shape == (4, 8, 8, 1)
    assert images("--image", "A", "B", "--invert", "--sampler", "ddim").shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--ckpt", "nowhere"], ("nowhere is neither a folder here nor owner/name",)),
        (["--num", "3"], ("--ckpt is missing",)),
        (["--ckpt", "RUN", "--steps", "1001"], ("between 1 and", "1000")),
        (["--ckpt", "RUN", "--sampler", "dpm"], ("unknown sampler 'dpm'", "ddpm")),
        (["--ckpt", "RUN", "--checkpoint", "5"], ("no checkpoint of step 5", "4, 8")),
        (["--ckpt", "EMPTY"], ("holds neither checkpoints nor",)),
        (["--ckpt", "RUN", "--steps", "3", "--timesteps", "9", "3"], ("give steps or timesteps, not both",)),
        (["--ckpt", "RUN", "--timesteps", "3", "9"], ("timesteps must fall",)),
        (
            ["--ckpt", "RUN", "--guidance-scale", "2"],
            ("guidance needs a net that was trained with and without labels",),
        ),
        (["--ckpt", "RUN", "--label", "3"], ("this net was trained without classes",)),
        (["--ckpt", "RUN", "--label", "three"], ("--label takes whole numbers", "three")),
        (["--ckpt", "CLASSES", "--label", "3,10"], ("label 10 is outside the classes 0..9",)),
        (["--ckpt", "CLASSES", "--guidance-scale", "-1"], ("guidance_scale must not be negative",)),
        (["--ckpt", "RUN", "--sampler", "ddim", "--sampler.eta", "-1"], ("eta must not be negative",)),
        (["--ckpt", "RUN", "--strength", "0.5"], ("--strength is for a picture",)),
        (["--ckpt", "RUN", "--image", "none.png"], ("there is no picture none.png",)),
        (["--ckpt", "RUN", "--image", "A", "--mask", "SMALL"], ("is 16x8 and the picture", "16x16")),
        (["--ckpt", "RUN", "--image", "A", "--invert"], ("needs a sampler that draws no noise",)),
        (["--ckpt", "RUN", "--image", "A", "--mask", "MASK", "--resample", "2"], ("less than the 10 steps",)),
    ],
)
def test_a_mistake_of_sampling_ends_in_one_line(
    args, words, straight, by_class, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": straight, "CLASSES": by_class, "EMPTY": tmp_path, **pictures}
    message = one_line(capsys, sample.main, *(places.get(arg, arg) for arg in args))
    for word in words:
        assert word in message


@pytest.mark.parametrize(("args", "word"), [("--num 0", "--num must be at least 1"), ("--out x.jpg", "x.jpg")])
def test_a_setting_of_sampling_that_will_not_do_is_named(args, word, straight, capsys):
    assert word in unboxed(fails(capsys, sample.main, "--ckpt", straight, *args.split()))
