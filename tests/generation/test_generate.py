"""Generation: what an image depends on, the states that are kept, edits by their rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import (
    BLUR,
    CONVOLUTIONS,
    IMAGES,
    MASK,
    MASKS,
    NOISES,
    SHARES,
    blur_params,
    random_params,
    recipe_of,
)
from jax.tree_util import Partial

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.generate import chunk_count, generate, generate_shown
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import walk, walk_length
from ddpm_jax.samplers import sample_keys

RECIPE = recipe_of(BLUR)
PARAMS = blur_params()


def draw(num=11, batch_size=8, seed=3, **options):
    return generate(RECIPE, PARAMS, num=num, batch_size=batch_size, seed=seed, **options)


def levels_apart(a, b):
    """The largest difference in levels of 0..255."""
    return np.abs(np.asarray(a, int) - b).max()


@pytest.fixture(scope="module")
def eleven():
    """Noise and samples of 11 images."""
    return draw(path=True)


def test_images_are_uint8_from_noise_to_sample(eleven):
    assert (eleven.shape, eleven.dtype) == ((2, 11, 4, 4, 1), np.uint8)
    for states in eleven:
        assert len(np.unique(states.reshape(11, -1), axis=0)) == 11
    assert len(np.unique(eleven[1])) > 20


def test_an_image_does_not_depend_on_how_many_are_drawn(eleven):
    for num, batch_size in ((5, 1), (5, 2), (2, 64)):
        found = draw(num=num, batch_size=batch_size, path=True)
        np.testing.assert_array_equal(found, eleven[:, :num], str((num, batch_size)))


def test_a_sampling_that_does_not_fit_the_objective_is_refused():
    """Also where it is given in place of the recipe's."""
    with pytest.raises(ValueError, match="was not trained to say variance learned_range"):
        draw(sampling=Sampling(options={"variance": "learned_range"}))


def test_an_image_depends_on_the_seed(eleven):
    other = draw(seed=4, path=True)
    assert (np.abs(other.astype(int) - eleven).max((2, 3, 4)) > 1).all()


def test_chunks_are_the_fewest_that_divide_the_steps():
    for steps, at_least, count in (
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
        assert chunk_count(steps, at_least) == count, (steps, at_least)


def test_stages_of_a_prime_number_of_steps_are_states_of_the_same_walk(eleven):
    seen = []
    found = draw(stages=3, path=True, on_stage=seen.append)
    assert found.shape == (4, 11, 4, 4, 1)
    assert levels_apart(found[[0, -1]], eleven) <= 1
    assert len({found[i].tobytes() for i in range(4)}) == 4
    # 7 equal parts are the fewest, no less than 3, that divide 7 steps.
    assert seen == [8] * 7 + [3] * 7


def test_more_stages_than_steps_repeat_some(eleven):
    found = draw(stages=9, path=True)
    assert found.shape == (10, 11, 4, 4, 1)
    assert levels_apart(found[[0, -1]], eleven) <= 1
    assert len({state.tobytes() for state in found}) == 8


def test_without_path_only_the_samples_are_returned(eleven):
    for stages, calls in ((1, [8, 3]), (7, [8] * 7 + [3] * 7)):
        seen = []
        found = draw(stages=stages, on_stage=seen.append)
        assert found.shape == (1, 11, 4, 4, 1)
        assert levels_apart(found[0], eleven[1]) <= 1
        assert seen == calls


def test_a_given_sampling_wins_over_that_of_the_recipe(eleven):
    found = draw(num=3, sampling=Sampling(steps=14), stages=14, path=True)
    assert len({state.tobytes() for state in found}) == 15
    np.testing.assert_array_equal(found[0], eleven[0, :3])


def test_the_progress_bar_counts_the_parts_of_the_sampling_that_is_given(capsys):
    settings = {"num": 3, "batch_size": 8, "seed": 3, "sampling": Sampling(steps=14)}
    generate_shown(RECIPE, PARAMS, stages=14, **settings)
    shown = capsys.readouterr().err
    assert "3 pictures, 14 steps: 100%" in shown
    assert "42/42" in shown


def test_an_edited_image_is_of_its_own_row_in_every_batch(eleven):
    """Batches of 8 and 3 images; the walks have steps of their own."""
    steps = walk_length(RECIPE.objective, RECIPE.sampling, MASK)
    assert steps == 7 + 6 + 2  # two stretches of 3 rows walked again, and two rows up
    seen = []
    _, x0 = draw(edit=MASK, path=True, on_stage=seen.append)[[0, -1]]
    images = to_uint8(np.asarray(IMAGES)[np.arange(11) % 3])
    kept = np.broadcast_to(~np.asarray(MASKS), (11, 4, 4, 1))
    np.testing.assert_array_equal(x0[kept], images[kept])
    assert len({image.tobytes() for image in x0}) == 11
    assert seen == [8, 3]


def test_an_inverted_image_is_of_its_own_row_in_every_batch():
    """Decoded by the walk that it was encoded by, so images of one row are equal."""
    edit = Edit(images=IMAGES, invert=True)
    found = draw(edit=edit, sampling=Sampling(steps=7, sampler="ddim"), path=True)
    for i in range(3, 11):
        assert levels_apart(found[:, i], found[:, i % 3]) <= 1, i
    assert len({image.tobytes() for image in found[-1, :3]}) == 3


def test_between_two_ends_all_images_have_the_noise_of_the_first(eleven):
    for edit in (NOISES, Edit(images=IMAGES[:1], end_images=IMAGES[:1], fractions=SHARES)):
        found = draw(edit=edit, path=True)
        if edit is NOISES:
            assert levels_apart(found[:, 0], eleven[:, 0]) <= 1
            assert len({image.tobytes() for image in found[0]}) == 11
        else:
            assert levels_apart(found, found[:, :1]) <= 1


@pytest.mark.usefixtures("optimized")
def test_an_image_does_not_depend_on_the_batch_or_the_devices():
    """Compiled as users do: 16 images on eight devices, two on each, and one on one device.

    This test stays the last of the file, as `optimized` lasts until its end.
    """
    recipe = recipe_of(CONVOLUTIONS)
    params = random_params(CONVOLUTIONS)
    options = {"seed": 3, "stages": 7, "path": True}
    whole = generate(recipe, params, num=11, batch_size=11, **options)
    network = bind(Partial(CONVOLUTIONS.apply, params), None)
    key = sample_keys(3, jnp.array([9]))
    shape = CONVOLUTIONS.image_shape
    states = walk(key, recipe.objective, network, shape, recipe.sampling, 7)
    alone = np.stack([to_uint8(np.asarray(state)) for state in states])
    np.testing.assert_array_equal(alone[0], whole[0, 9:10])
    assert levels_apart(alone, whole[:, 9:10]) <= 1
    assert len(np.unique(whole[-1].reshape(11, -1), axis=0)) == 11
    assert len(np.unique(whole[-1])) > 20
