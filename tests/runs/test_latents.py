"""The latents of a run: what they are made of, their scale, their tokenizer, and whose they are."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.latent_runs import AUTOENCODER, CONFIG, TEXT_UNET, captioned_images, write_metadata
from helpers.saved_runs import random_params, save_run
from PIL import Image

from ddpm_jax.data.folder import Folder
from ddpm_jax.devices import hosts
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.pipeline import TextToImagePipeline
from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion
from ddpm_jax.runs import checkpoints, grids, latents, loop, manifest
from ddpm_jax.runs.directory import LATENTS, TOKENIZER
from ddpm_jax.runs.initial_weights import with_pretrained_network
from ddpm_jax.runs.provenance import is_trained_with, weights_hash
from ddpm_jax.runs.text_model import text_model
from ddpm_jax.text_to_image.learn_tokenizer import learn_tokenizer
from ddpm_jax.text_to_image.word_maps import check_word_maps

SCALE = 0.5


@pytest.fixture
def data(tmp_path) -> Path:
    return captioned_images(tmp_path / "images")


def on_images(data: Path) -> LatentConfig:
    """The recipe, with networks of one level, on the captioned images in a folder."""
    autoencoder = dataclasses.replace(AUTOENCODER, widths=(4,), groups=2)
    return dataclasses.replace(
        CONFIG,
        autoencoder=dataclasses.replace(CONFIG.autoencoder, model=autoencoder),
        model=dataclasses.replace(TEXT_UNET, image_size=8),
        data=Folder(path=str(data), caption_column="text"),
    )


@pytest.fixture
def config(data) -> LatentConfig:
    return on_images(data)


def save_autoencoder(folder: Path, config, steps=(4,)) -> str:
    """Save random parameters as the autoencoder of a run; return the hash of the average."""
    save_run(folder / "autoencoder", config.autoencoder_config, steps)
    return weights_hash(random_params(config.autoencoder.model, steps[-1]))


def save_network(folder: Path, config, autoencoder: str) -> Path:
    """Save random parameters as the network of a run, trained on an autoencoder with this hash."""
    save_run(folder, config, steps=(8,))
    return record(folder, autoencoder)


def record(folder: Path, autoencoder: str) -> Path:
    """Write what step 8 was trained on."""
    step = folder / "checkpoints" / "8"
    facts = {"images": 6, "classes": None, "scaling_factor": SCALE, "autoencoder": autoencoder}
    (step / "data" / "metadata").write_text(json.dumps(facts))
    manifest.write(step)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run with an autoencoder, a tokenizer and a network of step 8, on the same images."""
    folder = tmp_path_factory.mktemp("saved")
    config = on_images(captioned_images(folder / "images"))
    workdir = save_network(folder / "run", config, save_autoencoder(folder / "run", config))
    latents.save_latents(config, workdir, loop.load(config, workdir, 0))
    return workdir


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy of the run, for one test."""
    return shutil.copytree(saved, tmp_path / "run")


def started_from(run: Path, config):
    """The config of a run that starts from another one."""
    return with_pretrained_network(config, str(run))


def test_latents_are_read_from_their_file_until_an_image_changes(run, data, config, monkeypatch):
    first = loop.load(config, run, 8)
    image = data / "red-square.png"
    Image.fromarray(np.asarray(Image.open(image))[::-1, ::-1] // 2).save(image)
    changed = loop.load(config, run, 8)
    (run / LATENTS).unlink()
    np.testing.assert_array_equal(changed.means, loop.load(config, run, 8).means)
    # The images are in the order of their names.
    differs = np.abs(changed.means - first.means).max((1, 2, 3)) > 1e-3
    assert differs.tolist() == [False, False, False, False, True, False]
    latents.save_latents(config, run, changed)
    monkeypatch.setattr(latents, "encode_means", None)
    np.testing.assert_array_equal(loop.load(config, run, 8).means, changed.means)


def test_the_scale_is_that_of_the_steps_so_far(run, config, tmp_path):
    new = loop.load(config, run, 0)
    assert new.scaling_factor * new.means.std() == pytest.approx(1)
    assert loop.load(config, run, 8).scaling_factor == SCALE
    shared = loop.load(started_from(run, config), tmp_path / "second", 0)
    assert shared.scaling_factor == SCALE
    indices = np.array([2, 0])
    np.testing.assert_array_equal(shared.read(indices)["image"], SCALE * new.means[indices])
    assert loop.describe_data(shared)["scaling_factor"] == SCALE


def test_a_run_that_starts_from_another_takes_the_autoencoder_of_the_first(run, config, tmp_path):
    """Also if the other one started from a third, and whatever its own recipe says."""
    other = dataclasses.replace(config.autoencoder.model, widths=(8,))
    autoencoder = dataclasses.replace(config.autoencoder, model=other)
    recipe = dataclasses.replace(config, autoencoder=autoencoder)
    second = started_from(run, recipe)
    assert second.autoencoder == config.autoencoder
    hash_of_first = latents.load_autoencoder(run).hash
    save_network(tmp_path / "second", second, hash_of_first)
    third = started_from(tmp_path / "second", recipe)
    assert latents.owner_of(third, tmp_path / "third") == run
    assert loop.load(third, tmp_path / "third", 0).autoencoder.hash == hash_of_first
    with pytest.raises(
        ValueError, match=r"autoencoder\.model are not those of .*autoencoder: leave"
    ):
        loop.load(dataclasses.replace(third, autoencoder=autoencoder), tmp_path / "third", 0)


def test_a_new_run_learns_its_tokenizer_whatever_an_earlier_one_left(run, data, config):
    lines = [{"file_name": path.name, "text": "ab ab ab"} for path in data.glob("*.png")]
    write_metadata(data, lines)
    small = dataclasses.replace(config.model, vocab_size=515, max_length=3)
    again = dataclasses.replace(config, model=small)
    ids = loop.load(again, run, 0).labels
    assert ids.shape == (6, 3)
    assert ids.max() < 515
    assert loop.load(config, run, 8).labels.shape == (6, config.model.max_length)
    shutil.rmtree(run / TOKENIZER)
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer in .*: restore it, or start the run"
    ):
        loop.load(config, run, 8)


def test_an_autoencoder_is_known_by_its_weights_and_not_by_its_files(run, config):
    """The same training writes the same weights, to files that differ."""
    weights = latents.load_autoencoder(run).hash
    assert loop.load(config, run, 8).autoencoder.hash == weights
    with pytest.raises(ValueError, match="was trained on the autoencoder as it is: leave"):
        latents.check_not_trained_further(run, 8)
    shutil.rmtree(run / "autoencoder")
    latents.check_not_trained_further(run, 8)
    assert save_autoencoder(run, config) == weights
    assert loop.load(config, run, 8).autoencoder.hash == weights
    save_autoencoder(run, config, steps=(5,))
    latents.check_not_trained_further(run, 8)
    with pytest.raises(
        ValueError, match=r"Step 8 of .* was trained on other weights than those in"
    ):
        loop.load(config, run, 8)


def test_records_of_older_runs_name_the_files_of_the_autoencoder(run):
    """They hold 16 digits, which match any weights."""
    assert not is_trained_with(run, 8, "autoencoder", "0" * 64)
    record(run, "efe1a83665188fbe")
    assert is_trained_with(run, 8, "autoencoder", "0" * 64)


@pytest.mark.parametrize("kind", ["flow", "edm"])
def test_an_objective_that_diffusers_lacks_is_drawn_and_not_exported(kind, data, tmp_path):
    config = dataclasses.replace(on_images(data), objective=Objective(schedule=kind, target=kind))
    net = config.autoencoder.model
    trained = latents.TrainedAutoencoder(data, net, random_params(net), "")
    files = learn_tokenizer(("red square",), config.model.vocab_size, config.model.max_length)
    model = text_model(config, random_params(config.model), trained, files, 1.0)
    for sampler in (None, "euler"):
        pipeline = TextToImagePipeline(model)
        images = pipeline("red square", steps=2, sampler=sampler, progress=False).arrays
        assert images.shape == (1, 8, 8, 3), sampler
    with pytest.raises(ValueError, match="diffusers lacks the noise schedule or target"):
        save_stable_diffusion(model, tmp_path / "out")
    if kind == "edm":
        with pytest.raises(ValueError, match="Attention maps do not scale the input"):
            check_word_maps(model, ["red square"])


@pytest.mark.parametrize(
    ("process", "expected"),
    [(0, ["images", "barrier", "restore"]), (1, ["barrier", "images", "restore"])],
)
def test_hosts_load_images_one_after_the_other_and_restore_together(
    run, config, monkeypatch, process, expected
):
    events = []
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(hosts, "barrier", lambda name: events.append("barrier"))
    load_images = Folder.load
    load_autoencoder = latents.load_autoencoder

    def record_images(*args):
        events.append("images")
        return load_images(*args)

    def record_restore(*args):
        events.append("restore")
        return load_autoencoder(*args)

    monkeypatch.setattr(Folder, "load", record_images)
    monkeypatch.setattr(latents, "load_autoencoder", record_restore)
    loop.load(config, run, 8)
    assert events == expected


def test_a_grid_restores_nothing(run, config, monkeypatch):
    """The primary host draws it alone, so the others could not take part."""
    loaded = loop.load(config, run, 8)
    drawn = []

    def draw_images(*args, **_):
        drawn.append(args)
        return np.zeros((1, 8, 8, 3), np.uint8)

    monkeypatch.setattr(latents, "load_autoencoder", None)
    monkeypatch.setattr(checkpoints, "restore", None)
    monkeypatch.setattr(grids, "draw_images", draw_images)
    grids.drawn_captions(config, random_params(config.model), loaded)
    ((model, request, _),) = drawn
    assert model.autoencoder.scaling_factor == SCALE
    assert list(request.prompts) == list(config.captions)
