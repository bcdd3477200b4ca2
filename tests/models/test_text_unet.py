"""A text encoder and its U-Net as one network, and an autoencoder in batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.generation import random_params
from helpers.latent_runs import AUTOENCODER, TEXT_UNET
from helpers.meshes import EXPLICIT

from ddpm_jax import draws
from ddpm_jax.diffusion.grid import make_grid
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import from_betas, linear_betas
from ddpm_jax.generation.attention_maps import attention_maps
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.models.unet_conditional import TextCondition
from ddpm_jax.training.step import hide_conditions, model_loss


@pytest.fixture(scope="module")
def params():
    return random_params(TEXT_UNET)


def test_it_is_the_unet_on_the_states_of_the_text_encoder(params):
    ids = jnp.array([[0, 5, 7, 1, 1, 1], [0, 9, 1, 1, 1, 1]], jnp.int32)
    xt = draws.normal(draws.make_key(1), (2, 4, 4, 4))
    t = jnp.array([3, 500], jnp.int32)
    apply = jax.jit(TEXT_UNET.apply)
    output = apply(params, xt, t, ids)

    @jax.jit
    def by_parts(params, xt, t, ids):
        states = TEXT_UNET.text_encoder.apply(params["text_encoder"], ids)
        return TEXT_UNET.unet.apply(params["unet"], xt, t, TextCondition(states))

    np.testing.assert_allclose(output, by_parts(params, xt, t, ids), atol=1e-5)
    assert np.abs(output[0] - apply(params, xt, t, ids[::-1])[0]).max() > 1e-4
    empty = apply(params, xt, t, TEXT_UNET.unconditional(2))
    np.testing.assert_allclose(apply(params, xt, t), empty, atol=1e-5)


@pytest.mark.parametrize("pixels", [None, [(0, 3)]])
def test_its_attention_is_that_of_the_unet_on_the_states_of_the_text_encoder(pixels):
    net = dataclasses.replace(TEXT_UNET, attention=(True,))
    params = random_params(net)
    ids = jnp.array([[0, 5, 7, 1, 1, 1]], jnp.int32)
    states = draws.normal(draws.make_key(1), (2, 1, 4, 4, 4))
    grid = make_grid(from_betas(linear_betas(1000)), np.array([900, 100]))
    maps = attention_maps(net, params, states, grid, ids, pixels=pixels)
    text = TextCondition(jax.jit(net.text_encoder.apply)(params["text_encoder"], ids))
    expected = attention_maps(net.unet, params["unet"], states, grid, text, pixels=pixels)
    assert maps.shape == (1, 4, 4, 6 if pixels is None else 1)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_its_shapes_are_those_of_the_mesh_in_which_they_are_asked_for():
    net = dataclasses.replace(TEXT_UNET, text_width=TEXT_UNET.text_width * 2)
    with jax.set_mesh(EXPLICIT):
        net.shapes()
    arguments = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1, jnp.int32)
    assert jax.eval_shape(net.apply, net.shapes(), *arguments).shape == (1, 4, 4, 4)


def test_a_row_of_ids_for_two_images_is_refused(params, monkeypatch):
    # The type check that is on in tests would refuse them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = jnp.zeros((2, 4, 4, 4)), jnp.zeros(2, jnp.int32), jnp.zeros((1, 6), jnp.int32)
    for function in (TEXT_UNET.apply, TEXT_UNET.queries_and_keys):
        with pytest.raises(ValueError, match="condition must have 2 rows, one per image"):
            function(params, *arguments)


def test_it_is_trained_on_the_captions_of_a_batch(params):
    ids = jnp.array([[0, 5, 7, 1, 1, 1], [0, 9, 1, 1, 1, 1]], jnp.int32)
    assert TEXT_UNET.condition_of({"label": ids}) is ids
    net = dataclasses.replace(TEXT_UNET, label_dropout=0.0)
    loss = jax.jit(model_loss(net, Objective()))
    keys = jax.random.split(jax.random.key(0), 2)
    batch = {"image": draws.normal(draws.make_key(1), (2, 4, 4, 4)), "key": keys}
    losses, of_others = (loss(params, keys, batch | {"label": each}) for each in (ids, ids[::-1]))
    assert np.all(losses != of_others)


def test_its_parameters_are_those_of_both_parts():
    parts = TEXT_UNET.text_encoder.parameter_count() + TEXT_UNET.unet.parameter_count()
    assert TEXT_UNET.parameter_count() == parts
    drawn = TEXT_UNET.init(draws.make_key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, drawn)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, TEXT_UNET.shapes())


def test_a_hidden_caption_is_the_empty_one():
    n = 400
    ids = np.full((n, TEXT_UNET.max_length), 7, np.int32)
    hidden = hide_conditions(jax.random.split(jax.random.key(0), n), TEXT_UNET, ids)
    is_empty = (np.asarray(hidden) == TEXT_UNET.empty_captions(n)).all(1)
    assert (np.asarray(hidden)[~is_empty] == 7).all()
    assert 0.05 < is_empty.mean() < 0.15


def test_a_batch_without_captions_is_refused():
    """With label dropout they would count as empty."""
    with pytest.raises(ValueError, match="conditioned on label: give it in each batch"):
        TEXT_UNET.condition_of({"image": np.zeros((1, 8, 8, 3))})


def test_batches_of_the_autoencoder_are_its_images_one_by_one():
    autoencoder = dataclasses.replace(AUTOENCODER, widths=(8,))
    params = random_params(autoencoder)
    images = draws.normal(draws.make_key(1), (3, 8, 8, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def there_and_back(net, params, images):
        moments = net.encode(params, images)
        return moments, net.decode(params, moments[..., :4])

    moments, restored = there_and_back(autoencoder, params, images)
    assert moments.shape == (3, 8, 8, 8)
    expected, one_by_one = there_and_back(autoencoder.net, params, images)
    np.testing.assert_allclose(moments, expected, atol=1e-5)
    np.testing.assert_allclose(restored, one_by_one, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TextUNet, {"num_classes": 3}, "neither classes nor a learned variance"),
        (TextUNet, {"text_heads": 3}, "3 heads do not divide 128 channels"),
        (TextUNet, {"attention": (True,)}, "^attention names 1 levels, but widths has 2"),
        (ImageAutoencoder, {"widths": (8, 8, 8, 8, 8)}, "use a multiple of 16"),
        (TextUNet, {"text_heads": 0}, "text_heads must be at least 1, not 0"),
        (TextUNet, {"heads": 0}, "0 heads do not divide 48 channels"),
        (TextUNet, {"heads": 5}, "5 heads do not divide 48 channels"),
        (TextUNet, {"pad_id": 1536}, r"pad_id must be a token in .* \[0, 1536\), not 1536"),
        (TextUNet, {"head_dim": 64}, "Heads of 64 channels do not divide 48 channels"),
        (TextUNet, {"head_dim": 32}, "Heads of 32 channels do not divide 48 channels"),
        (TextUNet, {"vocab_size": 513}, "vocab_size must be at least 514, two special tokens"),
        (TextUNet, {"max_length": 2}, "max_length must be at least 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(image_size=8, channels=3, **settings)
