"""The kernels under JAX's transformations: meshes, debugging, export, float64, and their switch."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import EXPLICIT, ROWS, split
from jax import export
from jax.sharding import PartitionSpec

from ddpm_jax.models.kernels import switch
from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows
from ddpm_jax.models.kernels.winograd import conv3x3

A_PRIMITIVE = re.compile(r" (conv3x3|matmul)\w*\[")


def strided(x, kernel):
    return conv3x3(x, kernel, 1)


# (function, shape of x, shape of the second argument): minimal filtering of single and of large
# images, the direct convolution, and products of matrices and of stacks of matrices.
CASES = {
    "winograd": (conv3x3, (2, 4, 4, 32), (3, 3, 32, 32)),
    "large": (conv3x3, (2, 28, 28, 32), (3, 3, 32, 32)),
    "direct": (strided, (2, 4, 4, 3), (3, 3, 3, 5)),
    "matmul": (matmul, (6, 3), (3, 4)),
    "by_rows": (matmul_by_rows, (2, 5, 3), (2, 4, 3)),
}
by_case = pytest.mark.parametrize("case", CASES)
by_small_case = pytest.mark.parametrize("case", [case for case in CASES if case != "large"])


def arguments(case):
    """The function of a case, x with the batch in front, and the second argument."""
    function, *shapes = CASES[case]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal(shape) / 8, jnp.float32) for shape in shapes]
    return function, *arrays


def derivatives(function, x, y):
    """The value of `function`, and its gradients for x and y."""
    gradients = jax.grad(lambda x, y: jnp.sum(jnp.sin(function(x, y))), (0, 1))
    return function(x, y), gradients(x, y)


derivatives_jit = jax.jit(derivatives, static_argnums=0)
"""The same program for all tests of a case, except those with other settings of JAX."""


def second_derivatives(function, x, y):
    """The gradients for x and y of the squared gradient for y."""
    return jax.grad(lambda x, y: jnp.sum(derivatives(function, x, y)[1][1] ** 2), (0, 1))(x, y)


def assert_close(ours, expected):
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, ours, expected)


def y_spec(case):
    """How the second argument is split: the stacks of `by_rows` like x, weights not at all."""
    return ROWS if case == "by_rows" else PartitionSpec()


@by_case
def test_explicit_shardings_are_kept_and_the_results_those_of_one_device(case):
    function, x, y = arguments(case)
    sharded = [split(EXPLICIT, x), split(EXPLICIT, y, y_spec(case))]
    ours = derivatives_jit(function, *sharded)
    assert_close(ours, derivatives_jit(function, x, y))
    out, gradients = ours
    assert jax.typeof(out).sharding.spec[0] == "data"
    assert [jax.typeof(grad) for grad in gradients] == [jax.typeof(value) for value in sharded]


@by_small_case
def test_second_derivatives_keep_explicit_shardings(case):
    function, x, y = arguments(case)
    sharded = [split(EXPLICIT, x), split(EXPLICIT, y, y_spec(case))]
    compute = jax.jit(partial(second_derivatives, function))
    ours = compute(*sharded)
    assert_close(ours, compute(x, y))
    assert [jax.typeof(grad) for grad in ours] == [jax.typeof(value) for value in sharded]


@by_case
def test_gradients_in_shard_map_are_those_of_one_device(case):
    """With the checks of varying axes, as by default. The gradient of weights is their sum."""
    function, x, y = arguments(case)
    specs = (ROWS, y_spec(case))
    compute = partial(derivatives, function)
    mapped = jax.shard_map(compute, mesh=EXPLICIT, in_specs=specs, out_specs=(ROWS, specs))
    ours = jax.jit(mapped)(*map(partial(split, EXPLICIT), (x, y), specs))
    assert_close(ours, derivatives_jit(function, x, y))


@by_small_case
def test_results_without_jit_are_those_with_jit(case):
    function, x, y = arguments(case)
    expected = derivatives_jit(function, x, y)
    with jax.disable_jit():
        assert_close(derivatives(function, x, y), expected)


@by_small_case
def test_debug_nans_names_a_nan_that_arises_in_a_kernel(case):
    function, x, y = arguments(case)
    infinite = jnp.full_like(x, jnp.inf)
    for call in (function, jax.jit(function)):
        with jax.debug_nans(True), pytest.raises(FloatingPointError, match="invalid value"):
            call(infinite, jnp.zeros_like(y))


@by_case
def test_an_export_for_any_batch_gives_the_same_gradients(case):
    function, x, y = arguments(case)
    compute = jax.jit(partial(derivatives, function))
    (batch,) = export.symbolic_shape("b")
    x_shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    y_batch = (batch,) if case == "by_rows" else y.shape[:1]
    y_shape = jax.ShapeDtypeStruct((*y_batch, *y.shape[1:]), y.dtype)
    exported = export.export(compute)(x_shape, y_shape)
    assert_close(exported.call(x, y), derivatives_jit(function, x, y))


def test_an_export_for_any_image_size_gives_the_same_results():
    _, x, kernel = arguments("winograd")
    shape = export.symbolic_shape("b, h, w, 32")
    exported = export.export(jax.jit(conv3x3))(jax.ShapeDtypeStruct(shape, x.dtype), kernel)
    assert_close(exported.call(x, kernel), conv3x3(x, kernel))


@by_case
def test_results_under_x64_are_the_same_float32(case):
    function, x, y = arguments(case)
    expected = derivatives_jit(function, x, y)
    with jax.enable_x64(True):
        ours = derivatives_jit(function, x, y)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    assert_close(ours, expected)


@pytest.fixture
def unset(monkeypatch):
    """The switch as at the start of a process."""
    monkeypatch.setattr(switch, "_chosen", None)
    monkeypatch.delenv(switch.VARIABLE, raising=False)
    return monkeypatch


@by_small_case
def test_the_switch_leaves_no_primitive_and_the_same_results(unset, case):
    function, x, y = arguments(case)

    def jaxpr_and_values():  # of a new function, so that it is traced again
        traced = jax.jit(lambda x, y: derivatives(function, x, y)).trace(x, y)
        return str(traced.jaxpr), traced.lower().compile()(x, y)

    jaxpr, expected = jaxpr_and_values()
    assert A_PRIMITIVE.search(jaxpr)
    unset.setenv(switch.VARIABLE, "off")
    jaxpr, values = jaxpr_and_values()
    assert not A_PRIMITIVE.search(jaxpr)
    assert_close(values, expected)


def test_turning_the_kernels_off_compiles_functions_again(unset):
    _, x, kernel = arguments("winograd")
    jitted = jax.jit(conv3x3)
    assert "stablehlo.convolution" not in jitted.lower(x, kernel).as_text()
    switch.use_kernels(False)
    assert "stablehlo.convolution" in jitted.lower(x, kernel).as_text()
    switch.use_kernels(True)
    assert "stablehlo.convolution" not in jitted.lower(x, kernel).as_text()


def test_an_unknown_setting_of_the_switch_is_refused(unset):
    unset.setenv(switch.VARIABLE, "no")
    with pytest.raises(ValueError, match="DDPM_JAX_KERNELS must be on or off, not 'no'"):
        matmul(jnp.ones((1, 1)), jnp.ones((1, 1)))
