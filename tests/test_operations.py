"""Counts of a network's operations, as benchmarks/operations.py makes them."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.models.attention import MANY_KEYS, attend
from ddpm_jax.models.kernels.matmul import matmul
from ddpm_jax.models.kernels.switch import kernels_are_on
from ddpm_jax.models.kernels.winograd import conv3x3

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def operations(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("operations")


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_counts_a_multiplication_and_an_addition_per_pair(operations):
    assert operations.count(lambda a, b: a @ b + 1, floats(5, 3, 4), floats(5, 4, 2)) == 2 * 5 * 24
    assert operations.count(lambda a: jnp.exp(a) * a, floats(5, 3)) == 0


@pytest.mark.parametrize(
    ("options", "kernel", "products"),
    [
        # Along 6 pixels, 3 taps lie on 3 pixels each, but for 2 of them on padding at either end.
        ({"padding": "SAME"}, (3, 3, 2, 5), 16 * 16 * 2 * 5),
        ({"padding": "VALID"}, (3, 3, 2, 5), 12 * 12 * 2 * 5),
        ({"padding": "VALID", "window_strides": (2, 3)}, (3, 3, 2, 5), 6 * 6 * 2 * 5),
        # Every second pixel of an enlarged image is a zero: 11 results see 16 pixels in each row.
        ({"padding": ((1, 1), (1, 1)), "lhs_dilation": (2, 2)}, (3, 3, 2, 5), 16 * 16 * 2 * 5),
        ({"padding": "VALID", "rhs_dilation": (2, 2)}, (3, 3, 2, 5), 6 * 6 * 2 * 5),
        ({"padding": "SAME", "feature_group_count": 2}, (3, 3, 1, 6), 16 * 16 * 6),
    ],
)
def test_a_convolution_counts_the_products_with_pixels(operations, options, kernel, products):
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, **options)

    assert operations.count(convolve, floats(7, 6, 6, 2), floats(*kernel)) == 2 * 7 * products


def test_a_loop_counts_as_often_as_it_runs_and_the_longest_branch_counts(operations):
    def branches(take, a):
        return jax.lax.cond(take, lambda a: a @ a @ a, lambda a: a @ a, a)

    def loop(take, a):
        return jax.lax.scan(lambda a, _: (jax.jit(branches)(take, a), None), a, length=10)[0]

    product = 2 * 4**3
    assert operations.count(loop, jnp.bool_(True), floats(4, 4)) == 10 * 2 * product

    def until(a):
        return jax.lax.while_loop(lambda a: a[0, 0] < 1, lambda a: a @ a, a)

    with pytest.raises(ValueError, match="The length of a loop is unknown"):
        operations.count(until, floats(4, 4))


def test_all_chunks_of_attention_to_many_keys_count(operations):
    n = MANY_KEYS
    q = floats(1, 2, n, 3)
    assert operations.count(attend, q, q, q) == 4 * 2 * n**2 * 3


def test_products_within_kernels_count_and_the_kernels_stay_on(operations):
    a = floats(4, 4)
    assert operations.count(matmul, a, a) == 2 * 4**3
    assert operations.count(conv3x3, floats(1, 6, 6, 2), floats(3, 3, 2, 5)) == 2 * 16 * 16 * 10
    assert kernels_are_on()
