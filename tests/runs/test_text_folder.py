"""Runs on latents that start from Stable Diffusion in a folder."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import fails, one_line, run, small_main
from helpers.latent_runs import CONFIG, captioned_images
from helpers.saved_runs import random_params, save_run
from helpers.text import tiny_model, tokenizer_files
from helpers.training import assert_close

from ddpm_jax import evaluate
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.pretrained.stable_diffusion import load_stable_diffusion, save_stable_diffusion
from ddpm_jax.runs import latents, loop, saved_steps
from ddpm_jax.runs.initial_weights import with_pretrained_network
from ddpm_jax.runs.sources import open_checkpoint, open_run
from ddpm_jax.runs.tasks import task_of
from ddpm_jax.runs.text_model import open_text_model
from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize

pytestmark = pytest.mark.usefixtures("without_kernels", "without_curves")

ONE_LEVEL = {"widths": (8,), "cross_attention": (True,), "heads": (2,), "transformer_layers": (1,)}
TEXT_1 = {"hidden_width": 32, "layers": 1}
UNET_1 = {"widths": (8, 16)}
TEXT_2 = TEXT_1 | {"activation": "gelu"}
UNET_2 = {"widths": (8, 16), "heads": (2, 4), "linear_projection": True}


def save(folder: Path, text: dict, unet: dict, pad: str = "<|endoftext|>", **other) -> Path:
    """Write a small Stable Diffusion with these settings of its networks."""
    parts = tiny_model()
    text_encoder = dataclasses.replace(parts.text_encoder, **text)
    net = dataclasses.replace(parts.unet, **unet)
    model = parts._replace(
        text_encoder=text_encoder,
        text_params=random_params(text_encoder),
        unet=net,
        unet_params=random_params(net, 1),
        tokenizer_files=tokenizer_files(pad),
        **other,
    )
    save_stable_diffusion(model, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("pipeline"), TEXT_1, ONE_LEVEL)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return captioned_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(
    ("text", "unet", "pad"), [(TEXT_1, UNET_1, "<|endoftext|>"), (TEXT_2, UNET_2, "!")]
)
def test_the_network_to_train_is_that_of_the_folder(tmp_path, text, unet, pad):
    """As in Stable Diffusion 1 and 2. Without a condition, the caption is the empty prompt."""
    parts = load_stable_diffusion(save(tmp_path / "pipeline", text, unet, pad))
    source = open_checkpoint(str(tmp_path / "pipeline"))
    model = source.spec.model
    assert (model.text_encoder, model.unet) == (parts.text_encoder, parts.unet)
    assert source.spec.objective == parts.objective
    empty = tokenize(make_tokenizer(parts.tokenizer_files), "")
    np.testing.assert_array_equal(model.empty_captions(1), empty)
    expected = {"text_encoder": parts.text_params, "unet": parts.unet_params}
    jax.tree.map(np.testing.assert_array_equal, source.params("ema"), expected)


def test_a_run_has_the_autoencoder_the_scale_and_the_tokenizer_of_the_folder(folder, images):
    """Also if its images have another size."""
    data = Folder(path=str(images), caption_column="text")
    recipe = dataclasses.replace(CONFIG, data=data)
    config = with_pretrained_network(recipe, str(folder))
    autoencoder = dataclasses.replace(config.autoencoder.model, image_size=16)
    config = dataclasses.replace(
        config,
        autoencoder=dataclasses.replace(config.autoencoder, model=autoencoder),
        model=dataclasses.replace(config.model, image_size=8),
    )
    parts = load_stable_diffusion(folder)
    loaded = loop.load(config, folder / "none", 0)
    pixels = to_floats(config.load_images().read(np.array([2, 5]))["image"])
    moments = parts.autoencoder.encode(parts.autoencoder_params, jnp.asarray(pixels))
    scaled = loaded.read(np.array([2, 5]))
    assert_close(scaled["image"], parts.autoencoder.scaling_factor * moments[..., :4])
    assert loaded.tokenizer_files == parts.tokenizer_files
    assert latents.owner_of(config, folder / "none") == folder


def test_a_run_that_starts_from_a_run_takes_its_scale_and_knows_its_autoencoder(
    folder, images, tmp_path
):
    data = Folder(path=str(images), caption_column="text")
    first = with_pretrained_network(dataclasses.replace(CONFIG, data=data), str(folder))
    weights = latents.load_autoencoder(folder).hash
    facts = {"classes": None, "scaling_factor": 0.5}
    run = save_run(tmp_path / "first", first, (8,), autoencoder=weights, **facts)
    second = with_pretrained_network(first, str(run))
    assert loop.load(second, tmp_path / "second", 0).scaling_factor == 0.5
    save_run(tmp_path / "other", first, (8,), autoencoder="0" * 64, **facts)
    second = with_pretrained_network(first, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="was trained on other weights than those in"):
        loop.load(second, tmp_path / "second", 0)


def test_hidden_captions_may_differ_and_the_network_may_not(folder):
    """Found before the images are read."""
    config = with_pretrained_network(CONFIG, str(folder))
    check = task_of(config).check
    check(dataclasses.replace(config, model=dataclasses.replace(config.model, label_dropout=0.5)))
    other = dataclasses.replace(config.model, groups=4)
    with pytest.raises(ValueError, match=r"differs from the recipe's in model\.groups: leave out"):
        check(dataclasses.replace(config, model=other))


@pytest.mark.runs
def test_a_lora_on_a_folder_trains_and_knows_its_autoencoder(folder, images, tmp_path, capsys):
    run_folder = tmp_path / "run"
    command = ["--config", "latent", "--no-compilation-cache", "--data.path", images]
    command += ["--workdir", run_folder, "--init-from", folder, "--lora.rank", 2]
    run(small_main, *command, "--training.steps", 4, "--log.samples", 0)
    assert not (run_folder / "autoencoder").exists()
    parts = load_stable_diffusion(folder)
    scale = parts.autoencoder.scaling_factor
    assert saved_steps.data_at(run_folder, 4)["scaling_factor"] == scale
    own = open_run(str(run_folder))
    model = open_text_model(own, own.params("ema"))
    assert model.tokenizer_files == parts.tokenizer_files
    jax.tree.map(np.testing.assert_array_equal, model.autoencoder_params, parts.autoencoder_params)
    save(folder, TEXT_1, ONE_LEVEL, autoencoder_params=random_params(tiny_model().autoencoder, 5))
    message = fails(capsys, small_main, *command, "--training.steps", 8)
    assert "was trained on other weights than those in" in message


def test_folders_that_cannot_be_trained_end_in_one_line(folder, images, tmp_path, capsys):
    save_stable_diffusion(tiny_model(inpaints=True), tmp_path / "inpaints")
    save(tmp_path / "norm", TEXT_1, ONE_LEVEL | {"norm_eps": 1e-4})
    save(tmp_path / "short", TEXT_1 | {"max_length": 24}, ONE_LEVEL)
    command = (small_main, "--config", "latent", "--workdir", tmp_path / "run", "--init-from")
    message = one_line(capsys, *command, tmp_path / "inpaints")
    assert "takes a mask beside the latents" in message
    message = one_line(capsys, *command, tmp_path / "norm")
    assert "settings that cannot be trained here: norm_eps 0.0001." in message
    message = fails(capsys, *command, tmp_path / "short", "--data.path", images)
    assert "gives 77 tokens up to 520, but the text encoder takes 24 tokens below 521" in message
    message = one_line(capsys, small_main, "--config", "latent", "--model.pad-id", 7)
    assert "A run that learns its tokenizer chooses the special tokens itself" in message
    message = one_line(capsys, small_main, "--config", "small", "--init-from", folder)
    assert "go together" in message
    message = one_line(capsys, evaluate.main, "--ckpt", folder)
    assert "draws from prompts: draw images with sample.py" in message
