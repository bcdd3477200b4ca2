"""Pictures depend on (seed, index) alone; stages are as many as asked for; each objective's walk is its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ddpm_jax.corruption import Corruption
from helpers.generation import CONFIG, EDITS, IMAGES, MASKS, MODEL, random_params
from jax.tree_util import Partial

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.generate import chunk_count, generate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.samplers import sample_keys

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def eleven(params):
    """Noise and sample of 11 pictures drawn in one batch."""
    return generate(CONFIG, params, num=11, batch_size=11, seed=3, path=True)


def test_pictures_are_uint8_from_noise_to_sample(eleven):
    assert (eleven.shape, eleven.dtype) == ((2, 11, 4, 4, 1), np.uint8)
    assert len(np.unique(eleven[0].reshape(11, -1), axis=0)) == 11
    assert len(np.unique(eleven[1].reshape(11, -1), axis=0)) == 11
    assert len(np.unique(eleven[1])) > 20


@pytest.mark.parametrize(("num", "batch_size"), [(11, 1), (5, 1), (5, 2), (5, 5), (2, 64)])
def test_a_picture_does_not_depend_on_how_many_are_drawn_with_it(params, eleven, num, batch_size):
    """On eight devices a batch is rounded up to a multiple of eight: 8 pictures at a time, where `eleven` has 16."""
    found = generate(CONFIG, params, num=num, batch_size=batch_size, seed=3, path=True)
    np.testing.assert_array_equal(found[0], eleven[0, :num])
    assert np.abs(found.astype(int) - eleven[:, :num]).max() <= 1


def test_a_picture_depends_on_the_seed(params, eleven):
    other = generate(CONFIG, params, num=11, batch_size=11, seed=4, path=True)
    assert (np.abs(other.astype(int) - eleven).max((2, 3, 4)) > 1).all()


def test_a_picture_drawn_alone_on_one_device_is_the_same(params, eleven):
    network = Partial(MODEL.apply, params)
    *_, state = CONFIG.objective.walk(sample_keys(3, jnp.array([9])), network, MODEL.image_shape, CONFIG.sampling, 1)
    assert np.abs(to_uint8(np.asarray(state)).astype(int) - eleven[1, 9:10]).max() <= 1


@pytest.mark.parametrize(
    ("steps", "at_least", "count"),
    [(100, 1, 1), (100, 8, 10), (100, 10, 10), (7, 1, 1), (7, 2, 7), (997, 10, 997), (5, 9, 5), (1, 1, 1), (12, 5, 6)],
)
def test_chunks_are_the_fewest_that_divide_the_steps(steps, at_least, count):
    assert chunk_count(steps, at_least) == count


def test_stages_of_a_prime_number_of_steps(params, eleven):
    seen = []
    found = generate(CONFIG, params, num=11, batch_size=8, seed=3, stages=3, path=True, on_stage=seen.append)
    assert found.shape == (4, 11, 4, 4, 1)
    assert np.abs(found[[0, -1]].astype(int) - eleven).max() <= 1
    distinct = {found[i].tobytes() for i in range(4)}
    assert len(distinct) == 4
    assert seen == [8] * 7 + [3] * 7  # 7 equal parts are the fewest, no less than 3, that divide 7 steps


def test_more_stages_than_steps_repeat_some(params, eleven):
    found = generate(CONFIG, params, num=11, batch_size=11, seed=3, stages=9, path=True)
    assert found.shape == (10, 11, 4, 4, 1)
    assert np.abs(found[[0, -1]].astype(int) - eleven).max() <= 1
    assert len({state.tobytes() for state in found}) == 8


def test_on_stage_is_called_once_a_batch_by_default(params):
    seen = []
    generate(CONFIG, params, num=11, batch_size=8, seed=3, on_stage=seen.append)
    assert seen == [8, 3]


def test_without_the_path_only_the_samples_come_back(params, eleven):
    for stages in (1, 7):
        found = generate(CONFIG, params, num=11, batch_size=11, seed=3, stages=stages)
        assert found.shape == (1, 11, 4, 4, 1)
        assert np.abs(found[0].astype(int) - eleven[1]).max() <= 1


def test_sampling_that_is_given_wins_over_the_recipes(params, eleven):
    options = {"sampling": Sampling(steps=14), "stages": 14, "path": True}
    found = generate(CONFIG, params, num=3, batch_size=3, seed=3, **options)
    assert len({state.tobytes() for state in found}) == 15
    np.testing.assert_array_equal(found[0], eleven[0, :3])


def test_corruption_mixes_towards_the_prediction():
    """x <- x (1 - mix) + prediction mix with mix = 1/5, 1/4, 1/3, 1/2, 1 from uniform noise."""
    model, seen = BasicUNet(image_size=4, channels=1), []
    config = dataclasses.replace(CONFIG, model=model, objective=Corruption(), sampling=Sampling())
    params = random_params(model)
    found = generate(config, params, num=9, batch_size=8, seed=3, stages=5, path=True, on_stage=seen.append)
    assert found.shape == (6, 9, 4, 4, 1)
    assert seen == [8] * 5 + [1] * 5
    network = jax.jit(model.apply)
    noise = next(config.objective.walk(sample_keys(3, jnp.arange(9)), network, (4, 4, 1), config.sampling, 1))
    assert 0 <= noise.min() < 0.1 < 0.9 < noise.max() < 1
    x, states = noise, [noise]
    for mix in (1 / 5, 1 / 4, 1 / 3, 1 / 2, 1):
        x = x * (1 - mix) + network(params, x, jnp.zeros(9, jnp.int32)) * mix
        states.append(x)
    wanted = np.stack([to_uint8(np.asarray(state), 0.0) for state in states])
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert len(np.unique(found[-1])) > 5
    for path in (False, True):  # seen as a whole, the walk ends where it does in five parts
        whole = generate(config, params, num=9, batch_size=8, seed=3, path=path)
        assert np.abs(whole[-1].astype(int) - wanted[-1]).max() <= 1


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_picture_does_not_depend_on_how_many_are_drawn_with_it(params, eleven, name):
    """On eight devices 16 and 8 pictures at a time; each is of its own row of the edit."""
    sampling = Sampling(steps=7, sampler="ddim" if name == "inversion" else "ddpm")
    draw = lambda size: generate(  # noqa: E731
        CONFIG, params, num=11, batch_size=size, seed=3, sampling=sampling, edit=EDITS[name], path=True
    )
    whole, parts = draw(11).astype(int), draw(8)
    assert np.abs(whole - parts).max() <= 1
    distinct = len({picture.tobytes() for picture in parts[1]})
    assert distinct == 3 if name == "inversion" else distinct > 7
    if name == "mask":
        kept = np.broadcast_to(~np.asarray(MASKS), (11, 4, 4, 1))
        np.testing.assert_array_equal(whole[1][kept], to_uint8(IMAGES[jnp.arange(11) % 3])[kept])
    if name == "noises":
        np.testing.assert_array_equal(whole[0, 0], eleven[0, 0])
        assert np.abs(whole[1, 0] - eleven[1, 0]).max() <= 1


def test_between_two_ends_all_pictures_have_one_noise(params):
    edit = Edit(images=IMAGES[:1], others=IMAGES[:1], shares=jnp.linspace(0, 1, 11), strength=0.6)
    found = generate(CONFIG, params, num=11, batch_size=8, seed=3, edit=edit, path=True).astype(int)
    assert np.abs(found - found[:, :1]).max() <= 1


def test_an_edited_walk_has_its_own_number_of_steps(params):
    seen = []
    edit = EDITS["mask"]
    steps = CONFIG.objective.steps(CONFIG.sampling, edit)
    generate(CONFIG, params, num=3, batch_size=3, seed=3, edit=edit, stages=steps, on_stage=seen.append)
    assert steps == 7 + 6 + 2  # two stretches of 3 rows walked again, and two rows up
    assert len(seen) == steps


def test_the_corruption_toy_edits_nothing():
    config = dataclasses.replace(
        CONFIG, model=BasicUNet(image_size=4, channels=1), objective=Corruption(), sampling=Sampling()
    )
    with pytest.raises(ValueError, match="the corruption toy cannot edit pictures"):
        generate(config, random_params(config.model), num=3, batch_size=3, seed=3, edit=EDITS["strength"])
