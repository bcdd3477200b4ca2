"""Conditions of samples: rows in turn, guidance, checks against the data and the network."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import SMALLEST, draw
from helpers.refusals import assert_refused
from helpers.saved_runs import NET, small_recipe

from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.conditions import with_condition
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.values import LEVELS, scaled_values
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.conditions import (
    check_condition_settings,
    check_given_size,
    read_conditions,
)
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Model
from ddpm_jax.models.layers import dense
from ddpm_jax.pipeline import Pipeline


class ConditionedModule(nn.Module):
    """tanh of a mix of all channels, shifted by the numbers of the condition."""

    @nn.compact
    def __call__(self, xt, t, labels, keys, numbers=None):
        out = jnp.tanh(dense(xt, 1, "mix", init="torch"))
        if numbers is not None:
            out = out + dense(numbers, 1, "shift", init="torch")[:, None, None]
        return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioned(Model):
    """A network that compiles fast and takes a vector or an image."""

    image_size: ImageSize = 4
    channels: int = 1

    def module(self) -> nn.Module:
        return ConditionedModule()


VECTORS = Conditioned(vector_size=2, label_dropout=0.5)
ONE = dataclasses.replace(SMALLEST, vector_size=1)
BOTH = dataclasses.replace(VECTORS, num_classes=3)
VALUES = scaled_values("deviation", [(10.0, 2.0), (-300.0, 50.0)], np.dtype(float))
ROWS = np.array([[10.0, -300.0], [14.0, -200.0], [6.0, -350.0]])


def spec_of(net, **sampling):
    objective = Objective(schedule="squaredcos", timesteps=20)
    return ModelSpec(
        model=net, objective=objective, sampling=Sampling(sampler="ddim", steps=4, **sampling)
    )


def sample(rows, scale=1.0, num_images=4):
    net, params = draw(VECTORS)
    spec = spec_of(net, guidance_scale=scale)
    conditions = None if rows is None else read_conditions(net, rows, VALUES)
    options = {"num_images": num_images, "batch_size": 2, "seed": 0, "to_values": np.asarray}
    return generate(spec, params, conditions=conditions, **options)[0]


def test_samples_take_the_rows_of_a_condition_in_turn():
    in_turn = sample(ROWS)
    alone = [sample(row) for row in ROWS]
    for i, image in enumerate(in_turn):
        np.testing.assert_allclose(image, alone[i % 3][i], atol=1e-5)
        assert np.abs(image - alone[(i + 1) % 3][i]).max() > 1e-3


def test_guidance_extrapolates_from_samples_without_a_condition():
    with jax.debug_nans(True):
        without = sample(None)
    np.testing.assert_allclose(sample(ROWS[1], scale=0.0), without, atol=1e-5)
    guided = sample(ROWS[1], scale=3.0)
    assert np.abs(guided - sample(ROWS[1])).max() > 1e-3
    # Without a condition there is nothing to guide to.
    np.testing.assert_array_equal(sample(None, scale=3.0), without)


def test_a_pipeline_takes_conditions_in_the_unit_of_their_data():
    net, params = draw(VECTORS)
    pipeline = Pipeline(spec_of(net), params, condition_values=VALUES)
    ours = pipeline(batch_size=3, condition=ROWS, progress=False).arrays
    theirs = sample(ROWS, num_images=3)
    np.testing.assert_allclose(ours / 127.5 - 1, np.clip(theirs, -1, 1), atol=1 / 254 + 1e-4)
    one = pipeline(batch_size=1, condition=ROWS[0], progress=False).arrays
    np.testing.assert_array_equal(one, ours[:1])
    np.testing.assert_array_equal(pipeline(condition=ROWS, progress=False).arrays, ours)
    with pytest.raises(ValueError, match="scale of the condition's numbers is unknown"):
        Pipeline(spec_of(net), params)(condition=ROWS)


def test_conditions_of_other_shapes_are_refused():
    cases = [
        ((SMALLEST, ROWS), "This network has no such condition: leave the condition out"),
        ((VECTORS, ROWS[:, :1]), r"float64 \(3, 1\), but the network takes 2 numbers: give an"),
        ((VECTORS, np.array(1.0)), r"condition is float64 \(\), but the network takes 2 numbers"),
        ((VECTORS, ROWS[:0]), r"condition is float64 \(0, 2\), but"),
        ((VECTORS, np.array([["1", "2"]])), r"condition is <U1 \(1, 2\), but"),
        ((VECTORS, ROWS * np.nan), "The condition has values that are not finite"),
    ]
    assert_refused(lambda case: read_conditions(*case, VALUES), cases)
    with pytest.raises(ValueError, match="not seen labels without its other condition"):
        net, params = draw(BOTH)
        generate(spec_of(net), params, num_images=1, batch_size=1, seed=0)
    for labels in ([-1], [1, -1]):
        with pytest.raises(ValueError, match="not seen its condition without a label: give a lab"):
            options = {"labels": labels, "conditions": {"vector": np.zeros((1, 2), np.float32)}}
            generate(spec_of(net), params, num_images=1, batch_size=1, seed=0, **options)
    with pytest.raises(ValueError, match="draws what its condition says: give conditions"):
        net, params = draw(ONE)
        generate(spec_of(net), params, num_images=1, batch_size=1, seed=0)


def test_a_network_and_its_data_have_the_same_condition():
    brightness = Digits(condition="brightness")
    cases = [
        ((NET, brightness), "does not take data.condition brightness: set model.vector_size, or"),
        (
            (ONE, Digits()),
            r"a condition \(model.vector_size\) .* set data.condition to vector or brightness",
        ),
    ]
    assert_refused(lambda case: check_condition_settings(*case), cases)
    check_condition_settings(ONE, brightness)
    with pytest.raises(ValueError, match=r"does not take data.condition brightness"):
        small_recipe(data=brightness)
    given = with_condition(
        Arrays(path="x.npz", condition="vector"), InMemory(ROWS[:, :, None], conditions=ROWS)
    )
    check_given_size(VECTORS, given)
    with pytest.raises(
        ValueError, match=r"have 2 numbers, but the network takes 1: set --model.vector-size 2"
    ):
        check_given_size(ONE, given)
    with pytest.raises(ValueError, match=r"the network takes 1: use other data\."):
        check_given_size(ONE, given, "use other data")


SUPER = Conditioned(condition_channels=1, condition_noise=0.5)


def test_samples_take_noisy_condition_images_in_turn():
    net, params = draw(SUPER)
    small = np.random.default_rng(0).integers(0, 256, (2, 2, 2, 1), dtype=np.uint8)
    options = {"num_images": 3, "batch_size": 4, "seed": 0, "to_values": np.asarray}

    def sample_of(given, level=0.0):
        conditions = read_conditions(net, given, LEVELS)
        spec = spec_of(net, condition_noise=level)
        return generate(spec, params, conditions=conditions, **options)[0]

    in_turn = sample_of(small)
    for i, image in enumerate(in_turn):
        np.testing.assert_allclose(image, sample_of(small[i % 2])[i], atol=1e-5)
        assert np.abs(image - sample_of(small[(i + 1) % 2])[i]).max() > 1e-3
    noisy = sample_of(small, 0.5)
    assert np.abs(noisy - in_turn).max() > 1e-3
    np.testing.assert_array_equal(noisy, sample_of(small, 0.5))
    pipeline = Pipeline(spec_of(net, condition_noise=0.5), params)
    drawn = pipeline(batch_size=3, condition=small, progress=False).arrays
    expected = np.clip(noisy, -1, 1)
    np.testing.assert_allclose(drawn / 127.5 - 1, expected, atol=1 / 254 + 1e-4)


def test_settings_of_condition_images_fit_the_network_and_the_data():
    colour = dataclasses.replace(SMALLEST, channels=3, condition_channels=3, image_size=8)
    reduced = Digits(condition="reduced")
    grey = Digits(condition="grey")
    cases = [
        ((SMALLEST, grey), "does not take data.condition grey: set model.condition_channels, or"),
        ((colour, Digits()), "set data.condition to image or reduced or grey, or leave model.cond"),
        ((colour, grey), "For data.condition grey set model.condition_channels to 1, not 3"),
        (
            (dataclasses.replace(colour, condition_channels=1), reduced),
            "For data.condition reduced set model.condition_channels to 3, not 1",
        ),
        ((SUPER, grey), "A grey copy is of colour images: set model.channels to 3, not 1"),
        (
            (colour, dataclasses.replace(reduced, reduction=3)),
            "Blocks of 3x3 pixels do not divide images of 8x8: set data.reduction to a divisor",
        ),
    ]
    assert_refused(lambda case: check_condition_settings(*case), cases)
    check_condition_settings(colour, reduced)
    with pytest.raises(ValueError, match=r"with noise up to 0.5 on its condition image: lower"):
        spec_of(SUPER, condition_noise=0.6)
    with pytest.raises(ValueError, match=r"condition_noise must be in \[0, 1\), not -0.1"):
        Sampling(condition_noise=-0.1)
    with pytest.raises(ValueError, match=r"data.reduction must be at least 2, not 1"):
        Digits(reduction=1)
