"""Labels of pictures: drawn in turn or as given, refused where they do not fit; guidance by them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import CONFIG, EDITS, MODEL, random_params

from ddpm_jax import samplers
from ddpm_jax.generation.generate import generate, labels_of, network_of
from ddpm_jax.generation.sampling import Sampling

pytestmark = pytest.mark.usefixtures("optimized")
CLASSES = dataclasses.replace(MODEL, num_classes=3)
HIDING = dataclasses.replace(CLASSES, label_dropout=0.1)


def test_a_conditional_net_draws_its_classes_in_turn():
    model = dataclasses.replace(MODEL, num_classes=3)
    config, params = dataclasses.replace(CONFIG, model=model), random_params(model)
    xt, t, labels = jnp.zeros((8, 4, 4, 1)), jnp.ones(8, jnp.int32), jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1])
    network = network_of(model, params, jnp.arange(8) % 3)
    np.testing.assert_array_equal(network(xt, t), model.apply(params, xt, t, labels))
    assert generate(config, params, num=3, batch_size=3, seed=0).shape == (1, 3, 4, 4, 1)


def test_other_labels_and_parameters_do_not_recompile():
    config = dataclasses.replace(CONFIG, model=CLASSES)
    draw = lambda params, seed: generate(config, params, num=16, batch_size=8, seed=seed)  # noqa: E731
    first, count = draw(random_params(CLASSES), 0), samplers._walk_jit._cache_size()
    assert (draw(CLASSES.init(jax.random.key(1)), 1) != first).any()
    assert samplers._walk_jit._cache_size() == count


@pytest.mark.parametrize(
    ("model", "labels", "edit", "wanted"),
    [
        (MODEL, None, None, [-1]),
        (CLASSES, None, None, [0, 1, 2]),
        (CLASSES, [], None, [0, 1, 2]),
        (CLASSES, [2, 1], None, [2, 1]),
        (HIDING, [-1, 1], None, [-1, 1]),
        (HIDING, None, EDITS["mask"], [-1]),
        (HIDING, [2], EDITS["noises"], [2]),
        (CLASSES, [2, 1], EDITS["mask"], [2, 1]),
    ],
)
def test_labels_are_those_given_or_all_or_for_an_edit_none(model, labels, edit, wanted):
    found = labels_of(model, labels, edit)
    assert list(found) == wanted
    assert labels_of(model, found, edit) == found


@pytest.mark.parametrize(
    ("model", "labels", "edit", "message"),
    [
        (MODEL, [0], None, "this net was trained without classes: leave the labels out"),
        (CLASSES, [0, 3], None, "label 3 is outside the classes 0..2"),
        (CLASSES, [-1], None, "label -1 is outside the classes 0..2"),
        (HIDING, [-2], None, "label -2 is outside the classes 0..2"),
        (CLASSES, None, EDITS["mask"], "this net needs to know the class of what it edits: give a label"),
        (HIDING, [0, 1], EDITS["noises"], "between two ends there is one class: give one label, not 2"),
    ],
)
def test_labels_that_the_net_cannot_take_are_refused(model, labels, edit, message):
    with pytest.raises(ValueError, match=message):
        labels_of(model, labels, edit)


def test_guidance_is_that_of_the_labels_and_changes_no_other_picture():
    """Scale 1 is none; at another scale a picture is still of its own seed, index and label."""
    config, params = dataclasses.replace(CONFIG, model=HIDING), random_params(HIDING)
    draw = lambda num, scale, **options: generate(  # noqa: E731
        config, params, num=num, batch_size=8, seed=3, sampling=Sampling(steps=7, guidance_scale=scale), **options
    )[0].astype(int)
    guided = draw(9, 4.0, labels=[2, 0])
    assert np.abs(draw(4, 4.0, labels=[2, 0]) - guided[:4]).max() <= 1
    assert np.abs(draw(9, 4.0, labels=[2]) - guided)[::2].max() <= 1
    assert np.abs(draw(9, 4.0, labels=[2]) - guided)[1::2].max() > 1
    assert np.abs(draw(9, 1.0, labels=[2, 0]) - guided).max() > 1
    in_turn, ones = draw(9, 4.0, labels=[2, 0, 1]), draw(9, 4.0, labels=[1])
    assert np.abs(in_turn[2::3] - ones[2::3]).max() <= 1 < np.abs(guided[8] - ones[8]).max()
    unsaid, none = draw(9, 4.0, labels=[-1]), draw(9, 1.0, labels=[-1])
    assert np.abs(unsaid - none).max() <= 1
    assert np.abs(draw(9, 0.0, labels=[2, 0]) - none).max() <= 1
