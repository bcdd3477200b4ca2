"""Labels of images: drawn in turn or as given, refused where they do not fit, and guidance."""

import jax.numpy as jnp
import numpy as np
from helpers.generation import (
    BLUR,
    CLASSES,
    HIDING,
    MASK,
    NOISES,
    blur_params,
    recipe_of,
)
from helpers.refusals import assert_refused

from ddpm_jax import samplers
from ddpm_jax.generation.generate import choose_labels, generate, guided_network
from ddpm_jax.generation.sampling import Sampling


def draw(model, num=9, scale=1.0, params=None, seed=3, **options):
    sampling = Sampling(steps=7, guidance_scale=scale)
    params = params or blur_params(model)
    found = generate(
        recipe_of(model), params, num=num, batch_size=8, seed=seed, sampling=sampling, **options
    )
    return found[0].astype(int)


def levels_apart(a, b):
    """The largest difference in levels of 0..255."""
    return np.abs(a - b).max()


def test_a_conditional_net_draws_its_classes_in_turn():
    in_turn = draw(CLASSES)
    np.testing.assert_array_equal(in_turn, draw(CLASSES, labels=[0, 1, 2]))
    of_one = [draw(CLASSES, labels=[label]) for label in range(3)]
    for i, image in enumerate(in_turn):
        assert levels_apart(image, of_one[i % 3][i]) <= 1, i
        assert levels_apart(image, of_one[(i + 1) % 3][i]) > 1, i


def test_other_labels_and_parameters_share_one_program():
    first = draw(CLASSES)
    count = samplers._walk_jit._cache_size()
    other = draw(CLASSES, params=blur_params(CLASSES, 0.3), seed=1, labels=[2])
    assert np.any(other != first)
    assert samplers._walk_jit._cache_size() == count


def test_labels_are_those_given_or_all_classes_or_for_an_edit_none():
    for model, labels, edit, expected in (
        (BLUR, None, None, [-1]),
        (CLASSES, None, None, [0, 1, 2]),
        (CLASSES, [], None, [0, 1, 2]),
        (CLASSES, [2, 1], None, [2, 1]),
        (HIDING, [-1, 1], None, [-1, 1]),
        (HIDING, None, MASK, [-1]),
        (HIDING, [2], NOISES, [2]),
        (CLASSES, [2, 1], MASK, [2, 1]),
    ):
        found = choose_labels(model, labels, edit)
        assert list(found) == expected, (model, labels, edit)
        assert choose_labels(model, found, edit) == found


def test_labels_that_the_net_cannot_take_are_refused():
    cases = [
        ((BLUR, [0], None), "this net was trained without classes: leave the labels out"),
        ((CLASSES, [0, 3], None), r"label 3 is outside the classes 0\.\.2"),
        ((CLASSES, [-1], None), r"label -1 is outside the classes 0\.\.2"),
        ((HIDING, [-2], None), r"label -2 is outside the classes 0\.\.2"),
        ((CLASSES, None, MASK), "needs to know the class of what it edits: give a label"),
        ((HIDING, [0, 1], NOISES), "between two ends there is one class: give one label"),
    ]
    assert_refused(lambda case: choose_labels(*case), cases)


def test_a_network_without_classes_ignores_labels():
    xt, t = jnp.zeros((3, 4, 4, 1)), jnp.zeros(3, jnp.int32)
    network = guided_network(BLUR, blur_params(), jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(network(xt, t), xt)


def test_guidance_is_that_of_the_labels_and_changes_no_other_image():
    """Scale 1 is none; at another scale an image is still of its own seed, index and label."""
    guided = draw(HIDING, 9, 4.0, labels=[2, 0])
    twos = draw(HIDING, 9, 4.0, labels=[2])
    assert levels_apart(draw(HIDING, 4, 4.0, labels=[2, 0]), guided[:4]) <= 1
    assert levels_apart(twos[::2], guided[::2]) <= 1 < levels_apart(twos[1::2], guided[1::2])
    assert levels_apart(draw(HIDING, 9, 1.0, labels=[2, 0]), guided) > 1
    unlabelled = draw(HIDING, 9, 1.0, labels=[-1])
    assert levels_apart(draw(HIDING, 9, 4.0, labels=[-1]), unlabelled) <= 1
    assert levels_apart(draw(HIDING, 9, 0.0, labels=[2, 0]), unlabelled) <= 1
