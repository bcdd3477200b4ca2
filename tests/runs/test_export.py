"""Exports of runs: what is in the folder, what it opens as, what is replaced and what is not, and uploads that fail."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import TINY, draw, one_line, run, train_main
from helpers.hub import WRITE, environment_of, serve
from PIL import Image

from ddpm_jax.pretrained import hub
from ddpm_jax.pretrained.pipeline_folder import load_pretrained
from ddpm_jax.runs import export
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.sources import open_any

pytestmark = pytest.mark.usefixtures("optimized")
ROOT = Path(__file__).parents[2]
FILES = {"README.md", "loss.png", "model_index.json", "samples.png", "scheduler/scheduler_config.json"}
FILES |= {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two saves."""
    workdir = tmp_path_factory.mktemp("runs") / "small"
    run(train_main, *TINY, "--training.steps", 8, "--workdir", workdir)
    return workdir


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "deep" / "model"
    run(export.main, "--ckpt", trained, "--out", out)
    return out


def test_it_holds_the_average_and_what_was_trained_for(trained, exported):
    assert files(exported) == FILES
    source, found = open_any(str(trained)), load_pretrained(exported)
    for ours, theirs in zip(*(sorted(flat(tree)) for tree in (source.params("ema"), found.params)), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert found.recipe.objective == source.recipe.objective
    assert list(exported.parent.iterdir()) == [exported]


def flat(tree, path=""):
    if not isinstance(tree, dict):
        return [(path, np.asarray(tree))]
    return [leaf for name, part in tree.items() for leaf in flat(part, f"{path}/{name}")]


def test_it_draws_what_the_run_draws(trained, exported, tmp_path):
    for ckpt, name in ((trained, "run"), (exported, "export")):
        draw(ckpt, "--num", 3, "--steps", 4, "--sampler", "ddim", "--out", tmp_path / f"{name}.npz")
    drawn = [np.load(tmp_path / f"{name}.npz")["images"].astype(int) for name in ("run", "export")]
    assert np.max(np.abs(drawn[0] - drawn[1])) <= 1


def test_other_weights_and_an_earlier_step(trained, tmp_path):
    run(export.main, "--ckpt", trained, "--out", tmp_path / "raw", "--weights", "raw", "--checkpoint", 4)
    source = open_any(str(trained), 4)
    leaf = load_pretrained(tmp_path / "raw").params["conv_in"]["kernel"]
    np.testing.assert_array_equal(leaf, source.params("raw")["conv_in"]["kernel"])
    assert "weights: raw, of step 4" in (tmp_path / "raw/README.md").read_text()


def test_only_an_export_is_replaced_and_only_if_asked(trained, tmp_path, capsys):
    out = tmp_path / "model"
    out.mkdir()
    run(export.main, "--ckpt", trained, "--out", out)
    old = {path: path.stat().st_ino for path in out.rglob("*")}
    assert "add --overwrite" in one_line_boxed(capsys, "--ckpt", trained, "--out", out)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == old
    run(export.main, "--ckpt", trained, "--out", out, "--overwrite")
    assert files(out) == FILES
    assert list(tmp_path.iterdir()) == [out]
    (out / "thesis.txt").write_text("all I have")
    assert "is there already" in one_line_boxed(capsys, "--ckpt", trained, "--out", out, "--overwrite")
    assert (out / "thesis.txt").read_text() == "all I have"


def test_what_was_there_stays_where_the_new_cannot_take_its_place(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/README.md").write_text("old")
    with pytest.raises(FileNotFoundError):
        export.replace(tmp_path / "model", tmp_path / "none")
    assert (tmp_path / "model/README.md").read_text() == "old"


def one_line_boxed(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(export.main, *args)
    assert exit_.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [((), "say where to"), (("--out", "x", "--private"), "--private is for --push")],
)
def test_what_does_not_go_together_is_said(trained, args, message, capsys):
    assert message in one_line_boxed(capsys, "--ckpt", trained, *args)


def test_a_net_that_diffusers_has_not_is_one_line(tmp_path, capsys):
    run(train_main, *TINY, "--training.steps", 1, "--workdir", tmp_path / "edm", "--objective.target", "edm")
    for where in (("--out", tmp_path / "out"), ("--push", "us/net")):
        message = one_line(capsys, export.main, "--ckpt", tmp_path / "edm", *where)
        assert "diffusers has no edm" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [ConnectionError("no answer\nfrom the hub"), RuntimeError("no answer")])
def test_an_upload_that_fails_leaves_the_training_alone(error, tmp_path, monkeypatch, capsys):
    """The hub itself is in test_pretrained_hub; here its answers are given, for training and the hub both take long."""
    uploaded = []

    def upload(folder, repo, *, message, private):
        uploaded.append((repo, message, files(folder)))
        if len(uploaded) == 1:
            raise error

    monkeypatch.setattr(hub, "prepare", lambda repo, private: None)
    monkeypatch.setattr(hub, "upload", upload)
    run(train_main, *TINY, "--training.steps", 8, "--workdir", tmp_path / "run", "--push", "them/net")
    assert [(repo, message) for repo, message, _ in uploaded] == [("them/net", "Step 4"), ("them/net", "Step 8")]
    assert "step 4 was not uploaded, and training goes on: no answer" in capsys.readouterr().err
    assert saved_steps.steps(tmp_path / "run") == [4, 8]


def test_a_training_that_could_never_be_uploaded_does_not_begin(tmp_path, capsys):
    message = one_line(
        capsys, train_main, *TINY, "--objective.target", "edm", "--push", "a/b", "--workdir", tmp_path / "run"
    )
    assert "diffusers has no edm" in message
    assert not (tmp_path / "run").exists()
    assert "--private is for --push" in one_line(capsys, train_main, *TINY, "--private", "--workdir", tmp_path / "run")


def test_a_run_goes_to_the_hub_and_draws_from_there(trained, tmp_path):
    def command(*args):
        settings = environment_of(hub, tmp_path / "cache") | {"HF_TOKEN": WRITE, "JAX_NUM_CPU_DEVICES": "1"}
        words = [sys.executable, *map(str, args)]
        done = subprocess.run(words, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    with serve() as hub:
        said = command("-m", "ddpm_jax.export", "--ckpt", trained, "--push", "us/net", "--private")
        assert said == [f"{hub.address}/us/net"]
        assert hub.repositories["us/net"].private
        assert hub.repositories["us/net"].branches["main"].keys() == FILES
        ask = ("--num", 2, "--steps", 2, "--no-compilation-cache")
        assert command(ROOT / "sample.py", "--ckpt", "us/net", *ask) == ["samples.png"]
    with Image.open(tmp_path / "samples.png") as picture:
        assert min(picture.size) > 1


def test_the_pictures_are_pictures(exported):
    for name in ("samples.png", "loss.png"):
        with Image.open(exported / name) as picture:
            assert min(picture.size) > 1
    assert json.loads((exported / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
