"""Labels of samples: defaults, repetition in turn, refusals, guidance."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
from helpers.generation import (
    BLUR,
    CLASSES,
    HIDING,
    MASK,
    NOISES,
    blur_params,
    spec_of,
)
from helpers.refusals import assert_refused

from ddpm_jax import samplers
from ddpm_jax.generation.generate import choose_labels, generate, guided_network
from ddpm_jax.generation.sampling import Sampling


def draw(model, num_images=9, scale=1.0, params=None, seed=3, **options):
    params = params or blur_params(model)
    options |= {"num_images": num_images, "batch_size": 8, "seed": seed}
    options |= {"sampling": Sampling(steps=7, guidance_scale=scale)}
    states = generate(spec_of(model), params, **options)
    return states[0].astype(int)


def test_the_interval_and_rescaling_of_a_sampling_reach_the_guidance(monkeypatch):
    given = []

    def guide_as(network, *_, **options):
        given.append(options)
        return network

    monkeypatch.setattr(f"{guided_network.__module__}.guide", guide_as)
    sampling = Sampling(
        guidance_scale=4.0, guidance_interval=(5.0, 9.0), guidance_rescale=0.5, steps=7
    )
    guided_network(HIDING, blur_params(HIDING), jnp.array([0, 1]), sampling)
    assert given == [{"interval": (5.0, 9.0), "rescale": 0.5}]


def max_difference(a, b):
    """The largest difference of uint8 images."""
    return np.abs(a - b).max()


def test_a_conditional_network_draws_its_classes_in_turn():
    in_turn = draw(CLASSES)
    np.testing.assert_array_equal(in_turn, draw(CLASSES, labels=[0, 1, 2]))
    of_class = [draw(CLASSES, labels=[label]) for label in range(3)]
    for i, image in enumerate(in_turn):
        assert max_difference(image, of_class[i % 3][i]) <= 1, i
        assert max_difference(image, of_class[(i + 1) % 3][i]) > 1, i


def test_other_labels_and_parameters_share_one_program():
    first = draw(CLASSES)
    num_programs = samplers._walk_jit._cache_size()
    other = draw(CLASSES, params=blur_params(CLASSES, 0.3), seed=1, labels=[2])
    assert np.any(other != first)
    assert samplers._walk_jit._cache_size() == num_programs


def test_default_labels_are_all_classes_or_no_class_for_an_edit():
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
        chosen = choose_labels(model, labels, edit)
        assert list(chosen) == expected, (model, labels, edit)
        assert choose_labels(model, chosen, edit) == chosen


def test_labels_unknown_to_the_network_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cases = [
        ((BLUR, [0], None), "This network was trained without classes: leave the labels out"),
        ((CLASSES, [0, 3], None), r"Label 3 is outside the classes 0\.\.2"),
        ((CLASSES, [None], None), "A label must be an integer, not None"),
        ((CLASSES, [-1], None), r"Label -1 is outside the classes 0\.\.2"),
        ((HIDING, [-2], None), r"Label -2 is outside the classes 0\.\.2"),
        ((CLASSES, None, MASK), "needs the class of the images it edits: give a label"),
        ((HIDING, [0, 1], NOISES), "An interpolation has one class: give one label, not 2"),
    ]
    assert_refused(lambda case: choose_labels(*case), cases)


def test_a_network_without_classes_ignores_labels():
    xt, t = jnp.zeros((3, 4, 4, 1)), jnp.zeros(3, jnp.int32)
    network = guided_network(BLUR, blur_params(), jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(network(xt, t), xt)


def test_guidance_follows_the_labels_and_changes_no_other_image():
    """Guided images too depend on seed, index and label alone. Scale 1 is no guidance."""
    guided = draw(HIDING, 9, 4.0, labels=[2, 0])
    twos = draw(HIDING, 9, 4.0, labels=[2])
    assert max_difference(draw(HIDING, 4, 4.0, labels=[2, 0]), guided[:4]) <= 1
    assert max_difference(twos[::2], guided[::2]) <= 1 < max_difference(twos[1::2], guided[1::2])
    assert max_difference(draw(HIDING, 9, 1.0, labels=[2, 0]), guided) > 1
    unlabelled = draw(HIDING, 9, 1.0, labels=[-1])
    assert max_difference(draw(HIDING, 9, 4.0, labels=[-1]), unlabelled) <= 1
    assert max_difference(draw(HIDING, 9, 0.0, labels=[2, 0]), unlabelled) <= 1
