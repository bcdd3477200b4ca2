"""train.py and sample.py on recipes of latents: settings, and mistakes found before training."""

import dataclasses
import json
import shutil
import sys

import pytest
from helpers.commands import fails, one_line, small_main, unboxed
from helpers.latent_runs import CONFIG
from helpers.saved_runs import save_run

from ddpm_jax.cli import arguments, sample, train
from ddpm_jax.config import Training
from ddpm_jax.devices import parallel
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models import Model
from ddpm_jax.runs import directory, loop, manifest
from ddpm_jax.settings_json import settings_classes

pytestmark = pytest.mark.runs

RECIPES = small_main.keywords["recipes"]
COMMAND = (small_main, "--config", "latent", "--no-compilation-cache")


def parse(*args):
    return train.parse("latent", list(args), RECIPES)


def test_an_autoencoder_is_no_network_that_denoises(capsys):
    assert "image_autoencoder" not in settings_classes(Model)
    message = one_line(capsys, *COMMAND, "--model", "image_autoencoder")
    assert "Unknown model 'image_autoencoder': choose one of" in message


@pytest.fixture
def started(monkeypatch):
    """The runs that train.py starts, which are not trained."""
    calls = []

    def record(config, folder, start, **options):
        calls.append((folder, start, options))
        return 0

    monkeypatch.setattr(loop, "train", record)
    return calls


def test_mistakes_are_found_before_the_autoencoder_is_trained(
    started, tmp_path, capsys, monkeypatch
):
    command = (*COMMAND, "--workdir", tmp_path / "run")
    for options, expected in (
        (("--model.vocab-size", 500), "vocab_size must be at least 514"),
        (("--model.max-length", 2), "max_length must be at least 3"),
        (("--autoencoder.model.channels", 1), "set autoencoder.model.channels to 3, not 1"),
    ):
        assert expected in unboxed(fails(capsys, *command, *options))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        assert 'run pip install "ddpm_jax[text]"' in one_line(capsys, *command)
    save_run(tmp_path / "run", CONFIG)
    assert "other settings (optimizer.learning_rate)" in one_line(
        capsys, *command, "--optimizer.learning-rate", 0.5
    )
    assert started == []


def test_a_dry_run_checks_the_run_of_the_autoencoder_too(tmp_path, capsys):
    save_run(tmp_path / "autoencoder", CONFIG.autoencoder_config)
    command = (*COMMAND, "--workdir", tmp_path, "--dry-run")
    message = one_line(capsys, *command, "--autoencoder.optimizer.learning-rate", 0.5)
    assert "other settings (optimizer.learning_rate)" in message


def test_a_network_with_a_checkpoint_keeps_its_autoencoder(started, tmp_path, capsys):
    save_run(tmp_path, CONFIG)
    small_main(["--config", "latent", "--no-compilation-cache", "--workdir", str(tmp_path)])
    (first, _, options), (second, start, _) = started
    assert (first, second, start) == (tmp_path / "autoencoder", tmp_path, 8)
    assert options["on_start"].args == (tmp_path, 8)
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--ckpt {tmp_path} --prompt TEXT")


def test_devices_divide_the_batches_of_both_runs(monkeypatch, tmp_path):
    sizes = []
    checked = []

    def record(batch_size, *_, cpu_devices, **__):
        sizes.append((batch_size, cpu_devices))
        return 1

    monkeypatch.setattr(arguments, "set_up_jax", record)
    monkeypatch.setattr(parallel, "check_divides", lambda size, fsdp: checked.append(size))
    options = ("--autoencoder.training.batch-size", "12", "--workdir", str(tmp_path))
    config = train.use_devices(parse(*options))
    assert sizes.pop() == (4, None)
    train.check_batches(config)
    assert checked == [8, 12]
    # The first run has begun, and the second has no config yet.
    settings = dataclasses.replace(CONFIG.parallel, cpu_devices=3)
    begun = dataclasses.replace(CONFIG, parallel=settings).autoencoder_config
    directory.write_config(tmp_path / "autoencoder", begun)
    train.use_devices(parse(*options))
    assert sizes.pop() == (4, 3)


def test_a_shared_autoencoder_does_not_limit_the_devices():
    shared = dataclasses.replace(
        CONFIG, training=Training(batch_size=6, steps=8, init_from="runs/first")
    )
    assert (CONFIG.micro_batch_sizes, shared.micro_batch_sizes) == ((8, 8), (6,))


def test_guidance_of_a_network_without_caption_dropout_is_refused(tmp_path, capsys):
    net = dataclasses.replace(CONFIG.model, label_dropout=0.0)
    config = dataclasses.replace(CONFIG, model=net, sampling=Sampling(clip_x0=False))
    save_run(tmp_path, config)
    command = (sample.main, "--ckpt", tmp_path, "--no-compilation-cache", "--prompt", "red")
    assert "Guidance needs a network" in one_line(capsys, *command, "--guidance-scale", 3)


def test_a_run_on_latents_is_known_by_its_checkpoints(tmp_path, capsys):
    save_run(tmp_path, CONFIG)
    (tmp_path / "config.json").unlink()
    command = (sample.main, "--ckpt", tmp_path, "--no-compilation-cache")
    assert "There is no prompt" in one_line(capsys, *command)
    path = tmp_path / "checkpoints" / "8" / "config" / "metadata"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "format": 99}))
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    manifest.write(path.parents[1])
    assert "reads only format 3" in one_line(capsys, *command)
