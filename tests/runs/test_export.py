"""Export runs: the files, overwriting, uploads and their failures."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import one_line, run
from helpers.saved_runs import random_params, save_run, small_recipe
from PIL import Image

from ddpm_jax import export as command
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_grid
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub
from ddpm_jax.pretrained.pipeline_folder import load_pretrained
from ddpm_jax.runs import export
from ddpm_jax.runs.sources import open_checkpoint
from ddpm_jax.training.step import TrainState

MODEL = UNet(
    image_size=8,
    channels=1,
    widths=(4,),
    attention=(False,),
    layers_per_level=1,
    groups=2,
)
CONFIG = small_recipe(model=MODEL, sampling=Sampling(steps=10))
FILES = {
    "README.md",
    "ddpm_jax.json",
    "loss.png",
    "model_index.json",
    "samples.png",
    "scheduler/scheduler_config.json",
}
FILES |= {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8, two grids of samples, a loss plot and metrics."""
    workdir = save_run(tmp_path_factory.mktemp("runs") / "small", CONFIG)
    (workdir / "samples").mkdir()
    for name, shade in (("samples/00000004", 40), ("samples/00000008", 80), ("loss", 120)):
        Image.new("L", (9, 7), shade).save(workdir / f"{name}.png")
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 8, "loss": 0.5}) + "\n")
    return workdir


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "deep" / "model"
    run(command.main, "--ckpt", trained, "--out", out)
    return out


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_export_holds_the_average_the_objective_and_the_newest_pictures(exported):
    assert files(exported) == FILES
    # Whoever may read the folder may read its files.
    readable = exported.stat().st_mode & 0o444
    assert all((exported / name).stat().st_mode & 0o444 == readable for name in FILES)
    assert list(exported.parent.iterdir()) == [exported]
    pretrained = load_pretrained(exported)
    assert_same(pretrained.params, random_params(MODEL, 8, "ema"))
    assert pretrained.spec.objective == CONFIG.objective
    for name, shade in (("samples.png", 80), ("loss.png", 120)):
        with Image.open(exported / name) as picture:
            assert picture.getpixel((0, 0)) == shade, name
    assert json.loads((exported / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"


def test_an_export_samples_on_the_grid_of_the_run(exported):
    """The test above compares weights and objective, so samples are the same."""
    source = open_checkpoint(str(exported))
    assert source.classes == tuple("0123456789")
    ours, theirs = CONFIG.sampling, source.spec.sampling
    for setting in ("sampler", "steps", "clip_x0"):
        assert getattr(ours, setting) == getattr(theirs, setting)
    grids = (sampling_grid(CONFIG.objective, sampling) for sampling in (ours, theirs))
    for ours, theirs in zip(*map(jax.tree.leaves, grids), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_weights_and_an_earlier_step_can_be_exported(trained, tmp_path):
    options = ["--weights", "raw", "--checkpoint", 4]
    run(command.main, "--ckpt", trained, "--out", tmp_path / "raw", *options)
    assert_same(load_pretrained(tmp_path / "raw").params, random_params(MODEL, 4, "raw"))
    assert "weights: raw, of step 4" in (tmp_path / "raw/README.md").read_text()


def test_an_export_in_float16_is_half_as_large(exported, trained, tmp_path):
    run(command.main, "--ckpt", trained, "--out", tmp_path / "half", "--dtype", "float16")
    params = random_params(MODEL, 8, "ema")
    halved = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert_same(load_pretrained(tmp_path / "half").params, halved)
    weights = "unet/diffusion_pytorch_model.safetensors"
    sizes = [len(weights_of(folder / weights)) for folder in (tmp_path / "half", exported)]
    assert sizes[0] == sizes[1] / 2


def weights_of(path):
    """The bytes of a safetensors file behind its header."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def test_overwrite_replaces_an_export_and_nothing_else(trained, tmp_path, capsys):
    out = tmp_path / "model"
    out.mkdir()
    run(command.main, "--ckpt", trained, "--out", out)
    inodes = {path: path.stat().st_ino for path in out.rglob("*")}
    assert "add --overwrite" in refusal(capsys, "--ckpt", trained, "--out", out)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == inodes
    run(command.main, "--ckpt", trained, "--out", out, "--overwrite")
    assert files(out) == FILES
    assert list(tmp_path.iterdir()) == [out]
    (out / "thesis.txt").write_text("all I have")
    message = refusal(capsys, "--ckpt", trained, "--out", out, "--overwrite")
    assert "exists already: choose another --out." in message
    assert (out / "thesis.txt").read_text() == "all I have"


def test_a_failed_upload_does_not_lose_the_folder(trained, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError("The hub does not answer.")

    monkeypatch.setattr(command.hub, "prepare", lambda *_: None)
    monkeypatch.setattr(command.hub, "upload", fail)
    out = tmp_path / "model"
    message = refusal(capsys, "--ckpt", trained, "--out", out, "--push", "us/net")
    assert "does not answer" in message
    assert files(out) == FILES


def test_a_failed_swap_restores_the_old_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/README.md").write_text("old")
    with pytest.raises(FileNotFoundError):
        export.swap_folder(tmp_path / "model", tmp_path / "none")
    assert (tmp_path / "model/README.md").read_text() == "old"


def refusal(capsys, *args):
    """The message of a command that ends with status 2, without the box around it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run(command.main, *args)
    assert exit_.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_options_that_do_not_fit_are_refused(trained, capsys):
    half_lora = ["--out", "x.safetensors", "--dtype", "float16"]
    cases = [
        ([], "add --out DIR"),
        (["--out", "x", "--private"], "--private"),
        (half_lora, "leave out --dtype"),
    ]
    for args, message in cases:
        assert message in refusal(capsys, "--ckpt", trained, *args), args


def test_an_objective_unknown_to_diffusers_is_refused_before_any_write(
    tmp_path, capsys, monkeypatch
):
    """Neither a folder is written nor a request sent to the hub."""
    monkeypatch.setattr(hub, "prepare", lambda *_: pytest.fail("the hub was called"))
    edm = dataclasses.replace(CONFIG, objective=Objective(target="edm"))
    save_run(tmp_path / "edm", edm, steps=(1,))
    for target in (("--out", tmp_path / "out"), ("--push", "us/net")):
        message = one_line(capsys, command.main, "--ckpt", tmp_path / "edm", *target)
        assert "target edm does not exist in diffusers" in message, target
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="target edm does not exist in diffusers"):
        export.prepare_upload("us/net", False, edm)


@pytest.fixture
def hub_here(tmp_path, monkeypatch):
    """Replace the hub by a folder of repositories. Returns it and the list of calls.

    tests/pretrained/test_hub.py tests the real client.
    """
    repositories = tmp_path / "hub"
    calls = []

    def upload(folder, repo, *, private, message):
        calls.append((repo, private, message))
        shutil.copytree(folder, repositories / repo, dirs_exist_ok=True)
        return f"https://hub/{repo}"

    monkeypatch.setattr(hub, "prepare", lambda repo, private: calls.append((repo, private)))
    monkeypatch.setattr(hub, "upload", upload)
    monkeypatch.setattr(hub, "download", lambda repo, **_: repositories / repo)
    return repositories, calls


def test_an_uploaded_run_can_be_opened_from_the_hub(trained, hub_here, capsys):
    repositories, calls = hub_here
    run(command.main, "--ckpt", trained, "--push", "us/net", "--private")
    assert capsys.readouterr().out == "https://hub/us/net\n"
    assert calls == [("us/net", True), ("us/net", True, "Step 8 of a run")]
    assert files(repositories / "us/net") == FILES
    assert_same(open_checkpoint("us/net").params("ema"), random_params(MODEL, 8, "ema"))


def test_a_failed_upload_is_reported_and_does_not_raise(trained, hub_here, monkeypatch, capsys):
    """Training continues after it."""
    repositories, calls = hub_here
    upload = hub.upload
    export.prepare_upload("them/net", False, CONFIG)
    upload_ema = export.make_uploader("them/net", False, CONFIG, trained)
    params = jax.tree.map(jnp.asarray, random_params(MODEL, 3, "ema"))
    state = TrainState(jnp.int32(4), jax.tree.map(jnp.zeros_like, params), {"ema": params}, ())
    for kind in (ConnectionError, RuntimeError):

        def failing(*_, kind=kind, **__):
            raise kind("no answer\nfrom the hub")

        monkeypatch.setattr(hub, "upload", failing)
        upload_ema(4, state)
        warning = "Step 4 was not uploaded, training continues: no answer from the hub.\n"
        assert capsys.readouterr().err == warning, kind
    monkeypatch.setattr(hub, "upload", upload)
    upload_ema(5, state)
    warning = "Step 5 was not uploaded, training continues: it was not saved.\n"
    assert capsys.readouterr().err == warning
    upload_ema(8, state)
    assert calls == [("them/net", False), ("them/net", False, "Step 8")]
    assert_same(load_pretrained(repositories / "them/net").params, params)
