"""Values in any unit become inputs of a network, and samples become values again."""

import json

import numpy as np
import pytest

from ddpm_jax.data.pixels import to_floats, to_uint8
from ddpm_jax.data.values import LEVELS, ScaledValues, scaled_values
from ddpm_jax.settings_json import from_json, to_json

PAIRS = [(0.0, 1.0), (-5.0, 5.0), (270.0, 310.0)]
FLOAT = np.dtype(np.float32)


def random_values(n=50):
    """Values (n, 2, 3, 3) that are uniform between the pairs."""
    lows, highs = np.transpose(PAIRS)
    return np.random.default_rng(0).uniform(lows, highs, (n, 2, 3, 3)).astype(np.float32)


def test_a_range_becomes_minus_1_to_1_in_each_channel():
    values = scaled_values("range", PAIRS, FLOAT)
    ends = np.transpose(PAIRS).reshape(2, 1, 1, 3)
    x = values.to_network(ends)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.broadcast_to([[[[-1]]], [[[1]]]], x.shape))


def test_a_mean_becomes_0_and_a_deviation_1():
    values = scaled_values("deviation", [(3.0, 0.5), (-1.0, 20.0)], FLOAT)
    np.testing.assert_array_equal(values.to_network(np.array([3.0, -1.0])), [0, 0])
    np.testing.assert_array_equal(values.to_network(np.array([4.0, 39.0])), [2, 2])


@pytest.mark.parametrize("scaling", ["range", "deviation"])
def test_values_return_from_the_inputs_of_a_network(scaling):
    values = scaled_values(scaling, PAIRS, FLOAT)
    given = random_values()
    if scaling == "deviation":
        given = given * 3
    drawn = values.to_values(values.to_network(given))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, given, rtol=1e-5, atol=1e-5)


def test_only_a_range_limits_what_is_drawn():
    x = np.array([-1.5, 0.0, 1.5], np.float32)[:, None]
    drawn = {
        scaling: scaled_values(scaling, [(0.0, 10.0)], FLOAT).to_values(x)[:, 0].tolist()
        for scaling in ("range", "deviation")
    }
    assert drawn == {"range": [0, 5, 10], "deviation": [-15, 0, 15]}


@pytest.mark.parametrize(
    ("dtype", "x", "expected"),
    [
        (np.uint8, [-1, -0.008, 0.008, 1.0], [0, 1, 1, 2]),
        (np.int16, [-1, 0.5], [0, 2]),
        (np.bool_, [-0.9, 0.4], [False, True]),
    ],
)
def test_integers_are_drawn_as_integers_of_their_type(dtype, x, expected):
    values = scaled_values("range", [(0.0, 2.0 - (dtype == np.bool_))], np.dtype(dtype))
    drawn = values.to_values(np.float32(x)[:, None])
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn[:, 0], expected)


def test_integers_do_not_wrap_around():
    values = scaled_values("deviation", [(0.0, 100.0)], np.dtype(np.uint8))
    np.testing.assert_array_equal(values.to_values(np.float32([[-2.0], [4.0]])), [[0], [255]])
    # As a float, the largest integer of 64 bits is too large by one.
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        wide = scaled_values("range", [(float(limits.min), float(limits.max))], np.dtype(dtype))
        drawn = wide.to_values(np.float32([[-1.0], [1.0]]))
        np.testing.assert_array_equal(drawn[:, 0], [limits.min, limits.max])


def test_pictures_show_the_range_or_three_deviations():
    ends = scaled_values("range", [(2.0, 4.0)], FLOAT).show(np.float32([[1], [2], [4], [5]]))
    np.testing.assert_array_equal(ends[:, 0], [0, 0, 255, 255])
    values = scaled_values("deviation", [(2.0, 4.0)], FLOAT)
    np.testing.assert_array_equal(values.show(np.float32([[-10], [2], [14]]))[:, 0], [0, 128, 255])


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 pixels are not finite"):
        scaled_values("range", [(0.0, 1.0)], FLOAT).to_values(np.float32([[np.nan], [0]]))


def test_levels_are_those_of_8_bit_images():
    levels = np.arange(256, dtype=np.uint8)[:, None]
    x = LEVELS.to_network(levels)
    np.testing.assert_array_equal(x, to_floats(levels))
    np.testing.assert_array_equal(LEVELS.to_values(x), to_uint8(x))
    assert LEVELS.show(levels) is levels


def test_the_scale_of_values_survives_its_json():
    values = scaled_values("deviation", [(0.1, 1 / 3), (-2.0, 1e-9)], np.dtype(np.float64))
    assert values.dtype == "float32"
    read = from_json(ScaledValues, json.loads(json.dumps(to_json(values))), "values")
    assert read == values
    assert read != LEVELS
    assert values.describe().startswith("float32, mean and deviation of each channel: 0.1 +- 0.333")
