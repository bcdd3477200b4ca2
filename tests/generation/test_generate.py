"""Generation: what a sample depends on, trajectories, the progress bar, rows of edits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import nets
from helpers.generation import (
    BLUR,
    CONVOLUTIONS,
    FRACTIONS,
    IMAGES,
    MASK,
    MASKS,
    NOISES,
    Blur,
    blur_params,
    random_params,
    spec_of,
)
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.generate import choose_labels, chunk_count, generate, generate_shown
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import walk, walk_length
from ddpm_jax.samplers import sample_keys

SPEC = spec_of(BLUR)
PARAMS = blur_params()


def draw(num_images=11, batch_size=8, seed=3, **options):
    options |= {"num_images": num_images, "batch_size": batch_size, "seed": seed}
    return generate(SPEC, PARAMS, **options)


def max_difference(a, b):
    """The largest difference of uint8 images."""
    return np.abs(np.asarray(a, int) - b).max()


@pytest.fixture(scope="module")
def states_of_11():
    """Noise and samples of 11 images, in batches of 8 and 3."""
    return draw(trajectory=True)


def test_images_are_uint8_from_noise_to_sample(states_of_11):
    assert (states_of_11.shape, states_of_11.dtype) == ((2, 11, 4, 4, 1), np.uint8)
    for images in states_of_11:
        assert len(np.unique(images.reshape(11, -1), axis=0)) == 11
    assert len(np.unique(states_of_11[1])) > 20


def test_an_image_does_not_depend_on_how_many_are_drawn(states_of_11):
    for num_images, batch_size in ((5, 1), (5, 2), (2, 64)):
        states = draw(num_images, batch_size, trajectory=True)
        case = f"{num_images} images in batches of {batch_size}"
        np.testing.assert_array_equal(states, states_of_11[:, :num_images], case)


def test_images_may_have_any_shape_and_be_edited():
    model = Blur(image_size=(4, 6), channels=2)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 4, 6, 2)).astype(np.float32)
    masks = np.zeros((1, 4, 6, 1), bool)
    masks[:, :2, 3:] = True
    edit = Edit(images=jnp.asarray(images), masks=jnp.asarray(masks))
    options = {"num_images": 3, "batch_size": 3, "seed": 3}
    drawn = generate(spec_of(model), blur_params(model), **options)[0]
    edited = generate(spec_of(model), blur_params(model), edit=edit, **options)[0]
    assert drawn.shape == edited.shape == (3, 4, 6, 2)
    is_known = (edited == to_uint8(images)).all((0, 3))
    np.testing.assert_array_equal(is_known, ~masks[0, ..., 0])


def test_an_overriding_sampling_that_does_not_fit_the_objective_is_refused():
    with pytest.raises(ValueError, match="was not trained for variance learned_range"):
        draw(sampling=Sampling(options={"variance": "learned_range"}))


def test_an_image_depends_on_the_seed(states_of_11):
    other = draw(seed=4, trajectory=True)
    assert (np.abs(other.astype(int) - states_of_11).max((2, 3, 4)) > 1).all()


def test_chunks_are_the_fewest_that_divide_the_steps():
    for steps, minimum, count in (
        (100, 1, 1),
        (100, 8, 10),
        (100, 10, 10),
        (7, 1, 1),
        (7, 2, 7),
        (997, 10, 997),
        (5, 9, 5),
        (1, 1, 1),
        (12, 5, 6),
    ):
        assert chunk_count(steps, minimum) == count, (steps, minimum)


def test_a_trajectory_of_a_prime_number_of_steps_has_the_states_of_the_same_walk(states_of_11):
    calls = []
    states = draw(min_chunks=3, trajectory=True, on_steps=calls.append)
    assert states.shape == (4, 11, 4, 4, 1)
    assert max_difference(states[[0, -1]], states_of_11) <= 1
    assert len({images.tobytes() for images in states}) == 4
    # 7 steps divide into no fewer than 7 chunks, for each of two batches.
    assert calls == [1] * 7 + [1] * 7


def test_a_trajectory_of_more_states_than_steps_repeats_some(states_of_11):
    states = draw(min_chunks=9, trajectory=True)
    assert states.shape == (10, 11, 4, 4, 1)
    assert max_difference(states[[0, -1]], states_of_11) <= 1
    assert len({images.tobytes() for images in states}) == 8


def test_without_trajectory_only_the_samples_are_returned(states_of_11):
    for min_chunks, expected_calls in ((1, [7, 7]), (7, [1] * 14)):
        calls = []
        states = draw(min_chunks=min_chunks, on_steps=calls.append)
        assert states.shape == (1, 11, 4, 4, 1)
        assert max_difference(states[0], states_of_11[1]) <= 1
        assert calls == expected_calls


def test_a_given_sampling_overrides_that_of_the_recipe(states_of_11):
    states = draw(num_images=3, sampling=Sampling(steps=14), min_chunks=14, trajectory=True)
    assert len({images.tobytes() for images in states}) == 15
    np.testing.assert_array_equal(states[0], states_of_11[0, :3])


def test_the_progress_bar_counts_the_steps_of_all_batches_of_the_given_sampling(capsys):
    settings = {"num_images": 11, "batch_size": 8, "seed": 3, "sampling": Sampling(steps=14)}
    generate_shown(SPEC, PARAMS, min_chunks=14, **settings)
    shown = capsys.readouterr().err
    assert "11 images, 14 steps: 100%" in shown
    assert "28/28" in shown


def test_an_edited_image_has_its_own_row_in_every_batch():
    steps = walk_length(SPEC.objective, SPEC.sampling, MASK)
    # Two stretches of 3 rows are repeated, after one row up each.
    assert steps == 7 + 6 + 2
    calls = []
    _, x0 = draw(edit=MASK, trajectory=True, on_steps=calls.append)
    images = to_uint8(np.asarray(IMAGES)[np.arange(11) % 3])
    known = np.broadcast_to(~np.asarray(MASKS), (11, 4, 4, 1))
    np.testing.assert_array_equal(x0[known], images[known])
    assert len({image.tobytes() for image in x0}) == 11
    assert calls == [15, 15]


def test_an_inverted_image_has_its_own_row_in_every_batch():
    """Inversion draws no noise, so samples of the same image are equal."""
    edit = Edit(images=IMAGES, invert=True)
    states = draw(edit=edit, sampling=Sampling(steps=7, sampler="ddim"), trajectory=True)
    for i in range(3, 11):
        assert max_difference(states[:, i], states[:, i % 3]) <= 1, i
    assert len({image.tobytes() for image in states[-1, :3]}) == 3


def test_all_images_of_an_interpolation_have_the_noise_of_the_first(states_of_11):
    for edit in (NOISES, Edit(images=IMAGES[:1], end_images=IMAGES[:1], fractions=FRACTIONS)):
        states = draw(edit=edit, trajectory=True)
        if edit is NOISES:
            assert max_difference(states[:, 0], states_of_11[:, 0]) <= 1
            assert len({image.tobytes() for image in states[0]}) == 11
        else:
            assert max_difference(states, states[:, :1]) <= 1


@pytest.mark.usefixtures("optimized")
def test_an_image_does_not_depend_on_the_batch_or_the_devices():
    """Compare a batch of 16 on eight devices with a single image on one, with XLA's optimizations.

    Keep this test at the end of the file: `optimized` stays in effect until then.
    """
    spec = spec_of(CONVOLUTIONS)
    params = random_params(CONVOLUTIONS)
    options = {"seed": 3, "min_chunks": 7, "trajectory": True}
    batch = generate(spec, params, num_images=11, batch_size=11, **options)
    network = bind(Partial(CONVOLUTIONS.apply, params), None)
    key = sample_keys(3, jnp.array([9]))
    shape = CONVOLUTIONS.image_shape
    states = walk(key, spec.objective, network, shape, spec.sampling, 7)
    single = np.stack([to_uint8(np.asarray(state)) for state in states])
    np.testing.assert_array_equal(single[0], batch[0, 9:10])
    assert max_difference(single, batch[:, 9:10]) <= 1
    assert len(np.unique(batch[-1].reshape(11, -1), axis=0)) == 11
    assert len(np.unique(batch[-1])) > 20


@pytest.mark.parametrize("labels", [[0], [2, 1]], ids=str)
def test_labels_may_be_an_array(labels):
    model = dataclasses.replace(nets.SMALLEST, num_classes=3)
    assert choose_labels(model, np.array(labels)) == labels


def test_numbers_and_seeds_out_of_range_are_refused():
    cases = [
        ({"num_images": 0}, "num_images must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"min_chunks": 0}, "min_chunks must be at least 1, not 0"),
        ({"seed": 2**32}, r"seed must be in \[0, 2\*\*32\)"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\)"),
    ]
    assert_refused(lambda options: draw(**options), cases)
    options = {"num_images": 1, "batch_size": 0, "seed": 0, "progress": False}
    assert_refused(lambda options: generate_shown(SPEC, PARAMS, **options), [(options, "batch_")])
