"""Command lines: recipes, data sources and networks by name, help, and invalid settings."""

import dataclasses
import shlex
import sys
import warnings
from pathlib import Path

import pytest
from helpers.commands import CONFIGS, fails, one_line, run, train_main, unboxed
from PIL import Image

from ddpm_jax.cli import arguments, recipes, train
from ddpm_jax.cli.recipes import load_recipe, recipe_files, replace_part
from ddpm_jax.cli.sampling_arguments import without_replaced_timesteps
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.decode import decode_image
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.huggingface import HuggingFace
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.runs.progress import settings_as_flags
from ddpm_jax.settings_json import to_json


@pytest.mark.usefixtures("unchecked")
def test_data_and_model_are_chosen_by_name(capsys):
    chosen = ["--data", "folder", "--model", "basic_unet", "--data.path", "pictures"]
    config = train.parse("digits", chosen, CONFIGS).config
    assert config.model == BasicUNet(image_size=8, channels=1)
    assert config.data == Folder(path="pictures")
    for field, name, message in (
        ("data", "foldr", "Unknown data 'foldr': choose one of folder"),
        ("model", "convunet", "Unknown model 'convunet': choose one of conv_unet"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_part(config, field, name)
    assert "data.path" in fails(capsys, train_main, "--config", "digits", "--data", "folder")


@pytest.mark.usefixtures("unchecked")
def test_arrays_of_any_shape_are_settings_of_the_command_line():
    chosen = "--data arrays --data.path x.npz --data.scaling deviation --data.statistics 0 1 2 3"
    shape = "--sampling.no-clip-x0 --model.image-size 8 16 --model.channels 2"
    config = train.parse("digits", [*chosen.split(), *shape.split()], CONFIGS).config
    statistics = (0.0, 1.0, 2.0, 3.0)
    assert config.data == Arrays(path="x.npz", scaling="deviation", statistics=statistics)
    assert config.model.image_shape == (8, 16, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("cifar10_upscale", "--data folder --data.path x --data.condition reduced"),
        ("mnist_classes", "--model basic_unet --sampling.guidance-scale 1"),
        # The network would not fit images of 28 pixels.
        ("mnist", "--model conv_unet --model.image-size 32"),
    ],
)
def test_a_new_part_may_need_other_settings_of_the_command_line(recipe, options):
    """No new part fits the recipe by itself."""
    assert train.parse(recipe, options.split(), CONFIGS).config.model.image_size in (28, 32)


def test_another_sampler_starts_without_the_options_of_the_recipe():
    assert load_recipe("cifar10", CONFIGS).sampling.options
    options = "--sampling.sampler ddim --sampling.options eta 0.5".split()
    sampling = train.parse("cifar10", options, CONFIGS).config.sampling
    assert (sampling.sampler, dict(sampling.options)) == ("ddim", {"eta": 0.5})
    assert not train.parse("cifar10", options[:2], CONFIGS).config.sampling.options


@pytest.mark.parametrize("name", ["digits_classes", "cifar10", "emoji", "flowers128"])
def test_the_settings_of_a_recipe_are_shown_as_flags_that_set_them(name):
    recipe = load_recipe(name, CONFIGS)
    training = dataclasses.replace(recipe.training, steps=77)
    changed = dataclasses.replace(recipe, training=training)
    if name == "emoji":
        changed = dataclasses.replace(changed, captions=("red heart", "dog's face"))
    flags = [" ".join(flag) for flag in settings_as_flags(to_json(changed))]
    assert train.parse(name, shlex.split(" ".join(flags)), CONFIGS).config == changed


def test_other_parts_than_those_of_the_recipe_are_shown_as_flags_that_choose_them():
    recipe = load_recipe("digits", CONFIGS)
    changed = dataclasses.replace(
        recipe,
        data=Folder(path="my pictures"),
        model=BasicUNet(image_size=12, channels=1),
        sampling=Sampling(sampler="ddim", options={"eta": 0.5}),
    )
    flags = [" ".join(flag) for flag in settings_as_flags(to_json(changed))]
    assert train.parse("digits", shlex.split(" ".join(flags)), CONFIGS).config == changed


def test_init_from_stands_for_the_network_in_the_flags():
    resumed = train.parse("digits", ["--init-from", "digits", "--lora.rank", "2"], CONFIGS).config
    flags = [" ".join(flag) for flag in settings_as_flags(to_json(resumed))]
    assert train.parse("digits", shlex.split(" ".join(flags)), CONFIGS).config == resumed


def test_steps_of_the_command_line_replace_the_timesteps_of_a_recipe():
    default = Sampling(steps=50, timesteps=(19.0, 10.0, 4.0))
    for words, timesteps in (
        (["--steps", "50"], None),
        (["--spacing=leading"], None),
        (["--steps", "20", "--timesteps", "9"], default.timesteps),
        (["--clip-x0"], default.timesteps),
    ):
        assert without_replaced_timesteps(default, words, "--").timesteps == timesteps, words
    options = ["--sampling.options=eta", "0.5", "--sampling.sampler=ddim"]
    assert not train.parse("cifar10", options[2:], CONFIGS).config.sampling.options


def test_epochs_that_steps_override_are_refused_for_an_autoencoder_too():
    epochs = ["--autoencoder.training.epochs", "3"]
    with pytest.raises(ValueError, match=r"--autoencoder.training.steps is \d+ and overrides"):
        train.parse("emoji", epochs, CONFIGS)
    none = ["--autoencoder.training.steps", "None"]
    assert train.parse("emoji", epochs + none, CONFIGS).config.autoencoder.training.epochs == 3


def test_the_origin_of_the_weights_is_shown_as_its_flag():
    settings = {"training": {"init_from": "my runs/a"}, "autoencoder": {"init_from": None}}
    assert settings_as_flags(settings) == [("--init-from", "'my runs/a'")]


@pytest.mark.usefixtures("unchecked")
def test_another_source_of_data_keeps_the_column_of_the_captions():
    chosen = ["--data", "huggingface", "--data.path", "a.parquet"]
    config = train.parse("emoji", chosen, CONFIGS).config
    assert config.data == HuggingFace(path="a.parquet", caption_column="text")


@pytest.mark.usefixtures("unchecked")
def test_images_of_64_pixels_keep_the_size_of_the_latents_with_one_more_level():
    """The command of docs/text-to-image.md."""
    larger = "--autoencoder.model.image-size 64 --autoencoder.model.widths 16 32 64 64".split()
    config = train.parse("emoji", larger, CONFIGS).config
    assert config.autoencoder.model.latent_shape == config.model.image_shape == (8, 8, 8)


def test_a_missing_recipe_lists_all_recipes(capsys):
    message = fails(capsys, train_main)
    for name in recipe_files(CONFIGS):
        assert name in message
    with pytest.raises(SystemExit) as end:
        run(train_main, "--help")
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("called", "command"),
    [
        ("train.py", "python sample.py"),
        ("/clone/train.py", "python /clone/sample.py"),
        ("/usr/bin/ddpm-jax-train", "ddpm-jax-sample"),
    ],
)
def test_a_command_is_named_as_this_one_was_called(called, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called, "--config", "digits"])
    assert arguments.command("sample") == command


def test_a_home_directory_is_expanded_after_the_flag_too(monkeypatch):
    """A shell does so only at the beginning of a word."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "argv", ["train.py", "--workdir=~/runs/a", "--prompt=~ 5", "~x"])
    given: list[str] = []
    arguments.run(given.extend)
    assert given == ["--workdir=/home/me/runs/a", "--prompt=~ 5", "~x"]


def test_help_shows_the_recipe_and_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        run(train_main, "--config", "cifar10", "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    settings = ("--model.widths", "--training.batch-size", "--data.data-dir", "--checkpoint.every")
    for name in (*settings, "--ema.decay", "--push"):
        assert name in text
    described = recipes.description(CONFIGS / "cifar10.py").splitlines()
    lines = [line for line in described if line.startswith(("Time:", "Expected:"))]
    assert len(lines) == 2
    for line in lines:
        assert line in text


def test_dry_run_needs_no_data_and_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    options = ["--dry-run", "--workdir", workdir, "--no-compilation-cache"]
    run(train_main, "--config", "cifar10", *options)
    text = capsys.readouterr().out
    assert "35746307 parameters" in text
    assert "--training.steps 800000" in text
    assert "cifar10" in text
    assert not workdir.exists()


def test_a_mistake_is_an_error_of_one_line(capsys):
    cases = [
        ("--config cifar", ["Unknown recipe 'cifar'", "choose one of cifar10"]),
        ("--config", ["--config needs a value"]),
        ("--config digits --init-from x --model unet", ["the network: leave --model out"]),
    ]
    for args, words in cases:
        message = one_line(capsys, train_main, *args.split())
        assert all(word in message for word in words), (args, message)


def test_an_invalid_setting_is_named(capsys):
    """Settings that tyro rejects, and one of each class that checks its own settings."""
    cases = [
        ("--training.batchsize 3", ["training.batch-size"]),
        ("--training.batch-size many", ["--training.batch-size", "many"]),
        ("--training.dtype float8", ["float8", "bfloat16"]),
        ("--training.batch-size 0", ["training.batch_size must be at least 1"]),
        ("--model.channels 2", ["set model.channels to 1 or 3, not 2, or give --data arrays"]),
        ("--model.groups 0", ["groups must be at least 1"]),
        ("--model.image-size 9", ["Image size 9", "8 or 10"]),
        ("--model.image-size 8 16 24", ["--model.image-size", "8", "16", "24"]),
        ("--private", ["--private is for --push"]),
        ("--training.epochs 5", ["--training.steps is 1000 and overrides training.epochs"]),
        ("--training.init-from digits", ["Unrecognized options: --training.init-from"]),
    ]
    for args, words in cases:
        command = (train_main, "--config", "digits", "--dry-run", *args.split())
        message = unboxed(fails(capsys, *command))
        assert all(word in message for word in words), (args, message)


def test_private_without_a_repository_is_an_error():
    config = load_recipe("digits", CONFIGS)
    with pytest.raises(ValueError, match="--private is for --push"):
        train.TrainOptions(config=config, workdir=Path("run"), private=True)


def test_debug_shows_the_traceback(capsys):
    for debug in (False, True):
        with pytest.raises(SystemExit) as end, arguments.one_line_errors(debug):
            raise ValueError("two\nlines")
        assert end.value.code == 2
        message = capsys.readouterr().err
        assert message.endswith("error: two lines\n")
        assert ("Traceback" in message) == debug


def test_an_interrupted_command_exits_with_the_status_of_sigint(capsys):
    with pytest.raises(SystemExit) as end, arguments.one_line_errors(False):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_an_image_that_is_too_large_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    """Pillow warns above its own limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    Image.new("L", (15, 20)).save(tmp_path / "large.png")
    file = str(tmp_path / "large.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit), arguments.one_line_errors(False):
            decode_image(file, file, 8, 1, "crop", max_pixels=200)
    assert caught == []
    assert "above 200 pixels): raise --data.max-pixels" in capsys.readouterr().err
