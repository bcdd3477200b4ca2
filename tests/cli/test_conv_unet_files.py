"""`sample.py --ckpt model.pt` and `train.py --init-from model.pt` with a ConvBlock U-Net."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.conv_unet_files import MODEL, state_dict
from helpers.pretrained import save_bin
from helpers.saved_runs import random_params

from ddpm_jax.cli import sample
from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.generation.generate import generate
from ddpm_jax.pretrained.lora_files import save_lora
from ddpm_jax.runs.initial_weights import (
    first_params,
    first_trained,
    load_base,
    with_pretrained_network,
)
from ddpm_jax.runs.sources import open_checkpoint
from ddpm_jax.training.lora import Lora, merge_lora

pytestmark = pytest.mark.runs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def params():
    def around_one(path, leaf):
        return leaf + np.float32(path[-1].key == "scale")

    return jax.tree.map_with_path(around_one, random_params(MODEL))


@pytest.fixture
def ckpt(params, tmp_path):
    save_bin(tmp_path / "CIFAR_model.pt", state_dict(params))
    return str(tmp_path / "CIFAR_model.pt")


def test_sample_draws_from_a_state_dict(ckpt, params, tmp_path):
    out = tmp_path / "samples.npz"
    options = ["--num", "2", "--steps", "3", "--no-compilation-cache", "--out", str(out)]
    sample.main(["--ckpt", ckpt, *options])
    spec = open_checkpoint(ckpt).spec
    sampling = spec.sampling.override(steps=3)
    # As many images and chunks as sample.py draws at a time, so that one program serves both.
    options = {"num_images": 2, "batch_size": 64, "seed": 0, "min_chunks": 20}
    expected = generate(spec, params, sampling=sampling, **options)[-1]
    found = np.load(out)["images"]
    assert found.shape == (2, 32, 32, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_training_starts_from_a_state_dict(ckpt, params):
    config = with_pretrained_network(load_recipe("convunet_mnist", CONFIGS), ckpt)
    assert config.model == MODEL
    assert config.training.init_from == ckpt
    found = first_params(config, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_lora_of_a_state_dict_is_initialised_and_drawn(ckpt, params, tmp_path):
    """The settings are those of the project from which such state dicts come."""
    settings = Lora(rank=8, alpha=1.0, targets=("linear", "conv"))
    config = with_pretrained_network(load_recipe("convunet_mnist", CONFIGS), ckpt)
    config = dataclasses.replace(config, lora=settings)
    base = load_base(config, tmp_path, 0)
    jax.tree.map(np.testing.assert_array_equal, base.params, params)
    lora = {
        path: (a, jnp.full_like(b, 0.1))
        for path, (a, b) in first_trained(config, jax.random.key(1)).items()
    }
    save_lora(tmp_path / "style.safetensors", {"unet": lora}, {"unet": MODEL}, settings)
    out = tmp_path / "samples.npz"
    options = ["--num", "2", "--steps", "3", "--no-compilation-cache", "--out", str(out)]
    sample.main(["--ckpt", ckpt, "--lora", f"{tmp_path / 'style.safetensors'}:0.8", *options])
    spec = open_checkpoint(ckpt).spec
    merged = merge_lora(params, lora, 0.8 / 8)
    options = {"num_images": 2, "batch_size": 64, "seed": 0, "min_chunks": 20}
    expected, plain = (
        generate(spec, weights, sampling=spec.sampling.override(steps=3), **options)[-1].astype(int)
        for weights in (merged, params)
    )
    found = np.load(out)["images"]
    assert np.abs(found - expected).max() <= 1
    assert np.abs(expected - plain).max() > 10


def test_a_state_dict_has_one_set_of_weights(ckpt):
    with pytest.raises(ValueError, match=r"has one set of weights: leave out --weights\.$"):
        open_checkpoint(ckpt).params("raw")
