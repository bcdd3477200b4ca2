"""One number or two say how large images are."""

import pytest
from helpers.refusals import assert_refused

from ddpm_jax.image_size import sides, simplest, size_text


@pytest.mark.parametrize(
    ("size", "pair", "simple", "text"),
    [
        (8, (8, 8), 8, "8"),
        ([8, 8], (8, 8), 8, "8"),
        ((8, 16), (8, 16), (8, 16), "8x16"),
        ([16, 8], (16, 8), (16, 8), "16x8"),
    ],
)
def test_a_size_is_one_number_or_a_height_and_a_width(size, pair, simple, text):
    assert sides(size) == pair
    assert simplest(size) == simple
    assert size_text(simple) == text


def test_other_sizes_are_refused():
    message = "An image size is one number from 1, or a height and a width, not "
    wrong = (0, (8, 0), (8,), (8, 8, 1), "8x8", 8.0, (8, None), None)
    assert_refused(sides, [(size, message) for size in wrong])
