"""train.py as a user meets it: recipes, help, names, a fresh start, mistakes in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from helpers.commands import TINY, fails, one_line, run, train_main, unboxed
from PIL import Image

from ddpm_jax.cli import arguments
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("optimized")
ROOT = Path(__file__).parents[2]


def script(name: str, *args) -> subprocess.CompletedProcess:
    """A script run by itself."""
    command = [sys.executable, "-W", "error", name, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_overwrite_starts_afresh_and_keeps_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run(train_main, *TINY, "--training.steps", 2, "--workdir", tmp_path)
    run(train_main, *TINY, "--training.steps", 3, "--training.seed", 1, "--workdir", tmp_path, "--overwrite")
    assert saved_steps.steps(tmp_path) == [3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_data_and_model_are_chosen_by_name(tmp_path, capsys):
    for i in range(4):
        Image.new("L", (20 + i, 12), 60 * i).save(tmp_path / f"{i}.png")
    other = "--config digits --data folder --model basic_unet --no-compilation-cache --training.steps 1 --log.samples 0"
    where = ["--data.path", tmp_path, "--workdir", tmp_path / "run", "--training.batch-size", "8"]
    done = script("train.py", *other.split(), *where)
    assert "BasicUNet, 309057 parameters" in done.stdout, done.stderr
    assert saved_steps.steps(tmp_path / "run") == [1]
    assert "data.path" in script("train.py", *other.split()).stderr
    assert "there are: folder" in one_line(capsys, train_main, "--config", "digits", "--data", "foldr")
    assert "there are: conv_unet" in one_line(capsys, train_main, "--config", "digits", "--model", "convunet")


def test_labels_of_the_data_must_be_classes_of_the_net(tmp_path, capsys):
    few = ["--training.steps", 1, "--workdir", tmp_path, "--model.num-classes", 5]
    assert "outside the net's classes 0..4: set num_classes to 10" in one_line(capsys, train_main, *TINY, *few)


def test_without_a_recipe_the_recipes_are_listed(capsys):
    message = fails(capsys, train_main)
    for name in arguments.recipes(ROOT / "configs"):
        assert name in message
    with pytest.raises(SystemExit) as exit_:
        run(train_main, "--help")
    assert exit_.value.code == 0


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as exit_:
        run(train_main, "--config", "cifar10", "--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in ("--model.widths", "--training.batch-size", "--data.data-dir", "--checkpoint.every", "--ema.decay"):
        assert name in text


def test_dry_run_needs_no_data_and_leaves_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    run(train_main, "--config", "cifar10", "--dry-run", "--workdir", workdir, "--no-compilation-cache")
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
        capsys, train_main, *args.split(), *([] if args.endswith("--config") else ["--no-compilation-cache"])
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
    message = unboxed(fails(capsys, train_main, "--config", "digits", *args.split()))
    for word in words:
        assert word in message


def test_missing_data_without_a_network_fails_soon(tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    began = time.perf_counter()
    args = ["--config", "cifar10", "--data.data-dir", tmp_path / "tfds", "--workdir", tmp_path / "run"]
    message = one_line(capsys, train_main, *args, "--no-compilation-cache")
    assert time.perf_counter() - began < 10
    assert "--data.data-dir" in message


def test_a_recipe_is_read_before_jax_is_set_up():
    """The number of virtual devices can no longer be chosen once a device was touched."""
    command = [sys.executable, "-W", "error", "train.py", "--config", "digits_classes", "--dry-run"]
    free = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")
@pytest.mark.parametrize("name", ["train.py", "sample.py"])
def test_a_script_run_by_itself_starts_anew_for_large_pages_and_no_host_is_replaced(name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nprint('pages', os.environ.get('GLIBC_TUNABLES'))\n")
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    env["PYTHONPATH"] = str(tmp_path)
    run = f"runpy.run_path({name!r}, run_name='__main__')"
    host = f"import runpy, sys\nsys.argv = [{name!r}]\ntry: {run}\nfinally: print('here')"
    for command, said in (([name], ["None", "glibc.malloc.hugetlb=1"]), (["-c", host], ["None", "here"])):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=env, check=False
        )
        words = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(("pages", "here"))]
        assert words == said, done.stderr


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU here")
def test_a_missing_gpu_is_named():
    done = script("train.py", "--config", "digits", "--dry-run", "--platform", "gpu")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: no gpu was found")
    assert "Traceback" not in done.stderr
