"""train.py and sample.py as a user meets them: from recipe to pictures, exact resume, mistakes in one line."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sample
import train
from ddpm_jax import checkpoint, command_line
from ddpm_jax.run_log import read_metrics
from ddpm_jax.workdir import load_config

pytestmark = pytest.mark.usefixtures("optimized")
ROOT = Path(__file__).parent.parent
TINY = (
    "--config digits --no-compilation-cache --model.widths 8 --model.attention False --model.groups 4 "
    "--model.dropout 0.1 --data.flip --optimizer.warmup-steps 0 --optimizer.learning-rate 0.01 "
    "--training.batch-size 16 --training.accumulation 2 --checkpoint.every 4 --log.every 1 --log.samples 4 "
    "--log.sample-steps 2 --sampling.steps 10"
).split()


def run(main, *args) -> None:
    """A script's main as its command line runs it."""
    with command_line.one_line_errors(False):
        main([str(arg) for arg in args])


def fails(capsys, main, *args) -> str:
    """The message of a command that must end with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(main, *args)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def one_line(capsys, main, *args) -> str:
    """The message of a command that must end with status 2 after one line."""
    message = fails(capsys, main, *args)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def script(name: str, *args) -> subprocess.CompletedProcess:
    """A script run by itself."""
    command = [sys.executable, "-W", "error", name, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def unboxed(message: str) -> str:
    """The text of a message that is drawn in a box, on one line."""
    return " ".join(message.translate(str.maketrans("│─╭╮╰╯", "      ")).split())


def size(path: Path) -> tuple[int, int]:
    """Width and height of a picture."""
    with Image.open(path) as picture:
        return picture.size


def arrays(workdir: Path, step: int) -> list[np.ndarray]:
    """All arrays that a checkpoint holds."""
    import orbax.checkpoint as ocp

    folder = (workdir / checkpoint.FOLDER / str(step)).resolve()
    with ocp.StandardCheckpointer() as reader:
        items = [reader.restore(folder / item) for item in ("params", "ema_params", "opt_state")]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(items)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run of 8 steps without a stop."""
    workdir = tmp_path_factory.mktemp("straight")
    run(train.main, *TINY, "--training.steps", 8, "--workdir", workdir, "--preview", "--log.samples-every", 4)
    return workdir


def test_a_run_leaves_what_it_promises(straight):
    assert checkpoint.steps(straight) == [4, 8]
    assert [line["step"] for line in read_metrics(straight / "metrics.jsonl")] == list(range(1, 9))
    assert all({"loss", "grad_norm", "learning_rate"} <= set(line) for line in read_metrics(straight / "metrics.jsonl"))
    for name in ("loss.png", "preview/data.png", "preview/noise.png", "samples/00000004.png", "samples/00000008.png"):
        assert min(size(straight / name)) > 1
    assert json.loads((straight / "config.json").read_text())["training"]["batch_size"] == 16
    assert list((straight / "tensorboard").iterdir())


def test_resume_is_bitwise_exact(straight, tmp_path, capsys):
    run(train.main, *TINY, "--training.steps", 4, "--workdir", tmp_path)
    run(train.main, *TINY, "--training.steps", 8, "--workdir", tmp_path)
    for whole, resumed in zip(arrays(straight, 8), arrays(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(whole, resumed)
    losses = [[line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in (straight, tmp_path)]
    assert losses[0] == losses[1]
    capsys.readouterr()
    run(train.main, *TINY, "--training.steps", 8, "--workdir", tmp_path)
    assert "raise --training.steps" in capsys.readouterr().out


def test_another_recipes_run_is_neither_resumed_nor_lost(straight, tmp_path, capsys):
    before = {path: path.stat().st_mtime for path in straight.rglob("*")}
    message = one_line(capsys, train.main, *TINY, "--workdir", straight, "--optimizer.learning-rate", 1e-4)
    assert "optimizer.learning_rate" in message
    assert "--overwrite" in message
    assert {path: path.stat().st_mtime for path in straight.rglob("*")} == before


def test_overwrite_starts_afresh_and_keeps_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(train.main, *TINY, "--training.steps", 2, "--workdir", tmp_path)
    run(train.main, *TINY, "--training.steps", 3, "--training.seed", 1, "--workdir", tmp_path, "--overwrite")
    assert checkpoint.steps(tmp_path) == [3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_data_and_model_are_chosen_by_name(tmp_path, capsys):
    for i in range(4):
        Image.new("L", (20 + i, 12), 60 * i).save(tmp_path / f"{i}.png")
    other = "--config digits --data folder --model basic_unet --no-compilation-cache --training.steps 1 --log.samples 0"
    where = ["--data.path", tmp_path, "--workdir", tmp_path / "run", "--training.batch-size", "8"]
    done = script("train.py", *other.split(), *where)
    assert "BasicUNet, 309057 parameters" in done.stdout, done.stderr
    assert checkpoint.steps(tmp_path / "run") == [1]
    assert "data.path" in script("train.py", *other.split()).stderr
    assert "there are: folder" in one_line(capsys, train.main, "--config", "digits", "--data", "foldr")
    assert "there are: conv_unet" in one_line(capsys, train.main, "--config", "digits", "--model", "convunet")


def test_overwrite_loses_nothing_where_it_fails(straight, capsys):
    bad = ["--config", "butterflies", "--data.path", "no/such/file", "--workdir", straight, "--no-compilation-cache"]
    one_line(capsys, train.main, *bad, "--overwrite")
    assert checkpoint.steps(straight) == [4, 8]


def test_metrics_of_a_step_are_those_of_all_its_micro_batches():
    halves = [{"loss": jax.numpy.float32(1)}, {"loss": jax.numpy.float32(4)}]
    assert float(train.mean(halves)["loss"]) == 2.5
    assert train.mean(halves[:1]) is halves[0]


@pytest.fixture(scope="module")
def by_class(tmp_path_factory) -> Path:
    """A run of eight steps with classes, some of them hidden, and guidance by default."""
    workdir = tmp_path_factory.mktemp("by_class")
    classes = ["--model.num-classes", 10, "--model.label-dropout", 0.5, "--sampling.guidance-scale", 3]
    run(train.main, *TINY, *classes, "--training.steps", 8, "--workdir", workdir)
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


def test_labels_of_the_data_must_be_classes_of_the_net(tmp_path, capsys):
    few = ["--training.steps", 1, "--workdir", tmp_path, "--model.num-classes", 5]
    assert "outside the net's classes 0..4: set num_classes to 10" in one_line(capsys, train.main, *TINY, *few)


def draw(ckpt: Path, *args) -> None:
    run(sample.main, "--ckpt", ckpt, "--no-compilation-cache", *args)


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


AVERAGES = "--ema.power 0.05 0.1 --ema.others 0.1 --ema.snapshots-every 2 --checkpoint.keep-last 1".split()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    """A run of 8 steps with three more averages than one."""
    workdir = tmp_path_factory.mktemp("averaged")
    run(train.main, *TINY, *AVERAGES, "--training.steps", 8, "--workdir", workdir, "--log.samples", 0)
    return workdir


def test_resume_keeps_every_snapshot_bit_for_bit(averaged, tmp_path):
    for steps in (5, 8):
        run(train.main, *TINY, *AVERAGES, "--training.steps", steps, "--workdir", tmp_path, "--log.samples", 0)
    assert checkpoint.steps(tmp_path) == checkpoint.steps(averaged) == [8]
    assert checkpoint.steps(tmp_path, checkpoint.SNAPSHOTS) == checkpoint.steps(averaged, checkpoint.SNAPSHOTS)
    like = {name: load_config(averaged, 8).model.init(jax.random.key(0)) for name in ("power_0.05", "power_0.1")}
    for step in (2, 4, 6, 8):
        ours, theirs = (checkpoint.read_trees(f / checkpoint.SNAPSHOTS / str(step), like) for f in (tmp_path, averaged))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for whole, resumed in zip(arrays(averaged, 8), arrays(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(whole, resumed)


def test_pictures_are_drawn_with_any_average(averaged, tmp_path, capsys):
    images = {}
    for weights in ("ema", "ema_0.1", "power_0.1", "0.10", "0.08"):
        draw(averaged, "--num", 4, "--weights", weights, "--out", tmp_path / f"{weights}.npz")
        images[weights] = np.load(tmp_path / f"{weights}.npz")["images"].astype(int)
    assert np.abs(images["0.10"] - images["power_0.1"]).max() <= 1
    for one, other in itertools.combinations(("ema", "ema_0.1", "power_0.1", "0.08"), 2):
        assert np.abs(images[one] - images[other]).max() > 0
    for weights, words in {
        "emma": "ema, ema_0.1, power_0.05, power_0.1",
        "0.01": "more than 5%",
        "1": "0.2887",
    }.items():
        assert words in one_line(capsys, sample.main, "--ckpt", averaged, "--weights", weights)


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


def test_without_a_recipe_the_recipes_are_listed(capsys):
    message = fails(capsys, train.main)
    for name in command_line.recipes(ROOT / "configs"):
        assert name in message
    with pytest.raises(SystemExit) as exit_:
        run(train.main, "--help")
    assert exit_.value.code == 0


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as exit_:
        run(train.main, "--config", "cifar10", "--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in ("--model.widths", "--training.batch-size", "--data.data-dir", "--checkpoint.every", "--ema.decay"):
        assert name in text


def test_dry_run_needs_no_data_and_leaves_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    run(train.main, "--config", "cifar10", "--dry-run", "--workdir", workdir, "--no-compilation-cache")
    text = capsys.readouterr().out
    assert "35746307 parameters" in text
    assert "--training.steps 800000" in text
    assert "cifar10" in text
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--config cifar", ("unknown recipe 'cifar'", "there are: cifar10")),
        ("--config", ("--config needs a value",)),
        ("--config digits --training.batch-size 100", ("100 does not divide over 8 devices", "96 or 104")),
        ("--config digits --sampling.steps 1001", ("between 1 and", "1000")),
        ("--config butterflies --data.path no/such/folder/x --log.samples 0", ("no/such/folder/x",)),
    ],
)
def test_a_mistake_ends_in_one_line(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = one_line(
        capsys, train.main, *args.split(), *([] if args.endswith("--config") else ["--no-compilation-cache"])
    )
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--training.batchsize 3", ("training.batch-size",)),
        ("--training.batch-size many", ("--training.batch-size", "many")),
        ("--training.dtype float8", ("float8", "bfloat16")),
        ("--training.batch-size 0", ("training.batch_size must be at least 1",)),
        ("--optimizer.learning-rate -1", ("learning_rate must be positive",)),
        ("--model.channels 2", ("channels must be 1 (grey) or 3 (RGB), not 2",)),
        ("--model.groups 0", ("groups must be at least 1",)),
        ("--model.image-size 9", ("image size 9", "8 or 10")),
        ("--sampling.sampler heum", ("unknown sampler 'heum'", "ddpm")),
    ],
)
def test_a_setting_that_will_not_do_is_named(args, words, capsys):
    message = unboxed(fails(capsys, train.main, "--config", "digits", *args.split()))
    for word in words:
        assert word in message


def test_missing_data_without_a_network_fails_soon(tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    began = time.perf_counter()
    args = ["--config", "cifar10", "--data.data-dir", tmp_path / "tfds", "--workdir", tmp_path / "run"]
    message = one_line(capsys, train.main, *args, "--no-compilation-cache")
    assert time.perf_counter() - began < 10
    assert "--data.data-dir" in message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--ckpt", "nowhere"], ("nowhere does not exist",)),
        (["--num", "3"], ("--ckpt is missing",)),
        (["--ckpt", "RUN", "--steps", "1001"], ("between 1 and", "1000")),
        (["--ckpt", "RUN", "--sampler", "dpm"], ("unknown sampler 'dpm'", "ddpm")),
        (["--ckpt", "RUN", "--checkpoint", "5"], ("no checkpoint of step 5", "4, 8")),
        (["--ckpt", "EMPTY"], ("holds no checkpoint",)),
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


def test_a_recipe_is_read_before_jax_is_set_up():
    """The number of virtual devices can no longer be chosen once a device was touched."""
    command = [sys.executable, "-W", "error", "train.py", "--config", "digits_classes", "--dry-run"]
    free = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU here")
def test_a_missing_gpu_is_named():
    done = script("train.py", "--config", "digits", "--dry-run", "--platform", "gpu")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no gpu was found")
    assert "Traceback" not in done.stderr
