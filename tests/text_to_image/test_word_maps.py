"""Maps of words while images are drawn: which states, which words, which part of the steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import assert_refused
from helpers.text import smallest_model

import ddpm_jax as dj
from ddpm_jax.generation.walk import sampling_grid
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.text_to_image.draw import Batch, draw_batches, draw_images, make_plan
from ddpm_jax.text_to_image.request import Request
from ddpm_jax.text_to_image.word_maps import PERIODS, check_word_maps, draw_with_maps, word_maps

pytestmark = pytest.mark.runs

PROMPTS = ["a red, red heart", "red"]


@pytest.fixture(scope="module")
def drawn():
    """Four images of two prompts, their maps, and the grid and states of the only batch."""
    model = smallest_model()
    request = Request(prompts=PROMPTS, num_images=2, seed=37)
    images, maps = draw_with_maps(model, request, batch_size=4, progress=False)
    plan = make_plan(model, request, model.sampling)
    [batch] = draw_batches(plan, 4, progress=False, keep_states=True)
    return images, maps, plan.grid, batch.states


def test_the_states_are_the_inputs_of_each_row_and_the_images_stay_the_same(drawn):
    model = smallest_model()
    images, _, grid, states = drawn
    keys = dj.sample_keys(37, jnp.arange(8))
    assert states.shape == (3, 8, 4, 4, 4)
    np.testing.assert_array_equal(states[0], dj.initial_noise(keys, (4, 4, 4)))
    assert (
        np.asarray(grid.t).tolist()
        == np.asarray(sampling_grid(model.objective, model.sampling).t).tolist()
    )
    request = Request(prompts=PROMPTS, num_images=2, seed=37)
    without = draw_images(model, request, batch_size=4, progress=False)
    assert np.abs(images.astype(int) - without).max() <= 1


def test_without_maps_no_states_are_kept():
    model = smallest_model()
    request = Request(prompts=PROMPTS, num_images=2, seed=37)
    [batch] = draw_batches(make_plan(model, request, model.sampling), 4, progress=False)
    assert batch.states is None
    assert batch.latents.shape == (8, 4, 4, 4)


def test_each_image_has_the_maps_of_its_own_words_over_the_steps_and_their_thirds(drawn):
    model = smallest_model()
    _, maps, grid, states = drawn
    assert [found.words for found in maps] == [["a", "red", ",", "heart"]] * 2 + [["red"]] * 2
    assert {found.maps.shape[1:] for found in maps} == {(len(PERIODS), 4, 4)}
    text = dj.text_to_image.encode_text(model, dj.text_to_image.tokenize(model, PROMPTS[:1]))
    arguments = (model.unet, model.unet_params)
    for third, row in enumerate(grid.split(3)):
        part = dj.attention_maps(*arguments, states[third : third + 1, 1:2], row, text)[0]
        # "red" is the second and the fourth token after the start.
        expected = part[..., [2, 4]].mean(-1)
        np.testing.assert_allclose(maps[1].maps[1, 1 + third], expected, atol=1e-5)
        np.testing.assert_allclose(maps[1].maps[3, 1 + third], part[..., 5], atol=1e-5)
    # The layers have the size of the latents, so nothing is clamped.
    of_all, *of_thirds = np.moveaxis(maps[1].maps, 1, 0)
    np.testing.assert_allclose(of_all, sum(of_thirds), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps_than_three_have_no_thirds(steps):
    model = smallest_model()
    plan = make_plan(model, Request(prompts=PROMPTS), model.sampling.override(steps=steps))
    text = TextCondition(plan.text.states[np.arange(8) % 2])
    states = dj.initial_noise(dj.sample_keys(0, jnp.arange(8 * steps)), (4, 4, 4))
    states = states.reshape(steps, 8, 4, 4, 4)
    found = word_maps(plan, Batch(np.arange(8), text, states[-1], states))
    assert [maps.maps.shape[:2] for maps in found] == [(4, 1), (1, 1)]
    # The layers have the size of the latents, so nothing is clamped and the steps add up.
    arguments = (model.unet, model.unet_params)
    condition = TextCondition(text.states[1:2])
    whole = sum(
        dj.attention_maps(*arguments, states[i : i + 1, 1:2], row, condition)[0, ..., 1]
        for i, row in enumerate(plan.grid.split(steps))
    )
    np.testing.assert_allclose(found[1].maps[0, 0], whole, atol=1e-5)


def test_prompts_and_networks_without_maps_are_refused():
    plain = ConditionalUNet(
        widths=(8,), cross_attention=(False,), heads=(2,), transformer_layers=(1,), context_dim=8
    )
    assert_refused(
        lambda case: check_word_maps(smallest_model()._replace(unet=case[0]), case[1]),
        [
            ((smallest_model().unet, ["red", " "]), "The prompt ' ' has no word"),
            ((plain, ["red"]), "Only the middle of this network attends to the text"),
        ],
    )
