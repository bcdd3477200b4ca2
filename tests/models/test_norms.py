"""Group normalisation against its formula in float64, in both of its forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import EXPLICIT, ROWS, split
from helpers.nets import exact_group_norm

from ddpm_jax.models.norms import GroupNorm, group_norm, group_norm_of_few_kernels


def norm_inputs(mean=0.0, spread=0.0, c=8):
    """x, scale and bias. x has standard deviation 1 about channel means of N(mean, spread^2)."""
    rng = np.random.default_rng(2)
    x = mean + spread * rng.standard_normal(c) + rng.standard_normal((2, 16, 16, c))
    scale, bias = rng.standard_normal((2, c)).astype(np.float32)
    return x.astype(np.float32), scale, bias


def test_group_norm_matches_float64_to_1e_5():
    for groups in (1, 4, 8):
        for mean, spread in ((0.0, 0.0), (30.0, 0.0), (0.0, 10.0)):
            x, scale, bias = norm_inputs(mean, spread)
            expected = exact_group_norm(x.astype(np.float64), scale, bias, groups, 1e-6)
            ours = group_norm(*map(jnp.asarray, (x, scale, bias)), groups, 1e-6)
            tolerance = 1e-5 * np.abs(scale).max()
            case = f"{groups} groups, mean {mean}, spread {spread}"
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=case)


def test_group_norm_of_bfloat16_uses_float32_statistics():
    x, scale, bias = norm_inputs(30.0)
    x = jnp.asarray(x, jnp.bfloat16)
    normed = group_norm(x, jnp.asarray(scale), jnp.asarray(bias), 4, 1e-6)
    assert normed.dtype == jnp.bfloat16
    expected = exact_group_norm(np.asarray(x, np.float64), scale, bias, 4, 1e-6)
    np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=2**-8, atol=1e-5)


def values_and_gradients(norm, *arguments):
    """The norm with 4 groups of x (b, h, w, c), scale, bias and offset, and its four gradients."""
    weights = np.random.default_rng(3).standard_normal(arguments[0].shape, np.float32)

    @jax.jit
    def run(x, scale, bias, offset):
        apply = lambda x, scale, bias, offset: norm(x, scale, bias, 4, 1e-6, offset)  # noqa: E731
        out, back = jax.vjp(apply, x, scale, bias, offset)
        return out, *back(jnp.asarray(weights, out.dtype))

    return [np.asarray(result, np.float64) for result in run(*arguments)]


def narrow_norm_arguments(dtype=jnp.bfloat16):
    x, scale, bias = norm_inputs()
    offset = np.random.default_rng(4).standard_normal((2, 8))
    return jnp.asarray(x, dtype), scale, bias, jnp.asarray(offset, dtype)


def test_group_norm_of_few_kernels_matches_group_norm():
    arguments = narrow_norm_arguments(jnp.float32)
    norms = (group_norm_of_few_kernels, group_norm)
    for ours, plain in zip(*(values_and_gradients(n, *arguments) for n in norms), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=3e-6 * np.abs(plain).max())
    x, scale, bias, _ = arguments
    ours, plain = (norm(x, scale, bias, 4, 1e-6) for norm in norms)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


def test_group_norm_of_few_kernels_in_bfloat16_is_as_exact_as_group_norm():
    arguments = narrow_norm_arguments()
    wide = [jnp.asarray(x, jnp.float32) for x in arguments]
    exact = values_and_gradients(group_norm, *wide)
    norms = (group_norm_of_few_kernels, group_norm)
    ours, plain = (values_and_gradients(norm, *arguments) for norm in norms)
    for our, expected, right in zip(ours, plain, exact, strict=True):
        assert np.abs(our - right).max() <= 1.5 * np.abs(expected - right).max()


def test_group_norm_of_few_kernels_of_constants_is_the_bias():
    """Their variance rounds to less than -eps for some constants."""
    x = jnp.broadcast_to(jnp.linspace(1, 200, 64)[:, None, None, None], (64, 5, 5, 8))
    normed = group_norm_of_few_kernels(x, jnp.ones(8), jnp.full(8, 0.5), 4, 1e-6)
    np.testing.assert_allclose(normed, 0.5, atol=0.05)


def test_group_norm_of_few_kernels_works_per_example_and_on_meshes():
    x, scale, bias, offset = narrow_norm_arguments()
    arguments = (x, scale, bias, offset)
    expected = values_and_gradients(group_norm_of_few_kernels, *arguments)

    def norm(x, scale, bias, groups, eps, offset):
        one = lambda x, offset: group_norm_of_few_kernels(  # noqa: E731
            x[None], scale, bias, groups, eps, offset[None]
        )[0]
        return jax.vmap(one)(x, offset)

    def per_shard(x, scale, bias, groups, eps, offset):
        run = lambda x, scale, bias, offset: group_norm_of_few_kernels(  # noqa: E731
            x, scale, bias, groups, eps, offset
        )
        specs = {"in_specs": (ROWS, jax.P(), jax.P(), ROWS), "out_specs": ROWS}
        return jax.shard_map(run, mesh=EXPLICIT, **specs)(x, scale, bias, offset)

    split_arguments = (split(EXPLICIT, x), scale, bias, split(EXPLICIT, offset))
    results = [
        values_and_gradients(norm, *arguments),
        values_and_gradients(group_norm_of_few_kernels, *split_arguments),
        values_and_gradients(per_shard, *split_arguments),
    ]
    for result in results:
        for ours, plain in zip(result, expected, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=0, atol=0.02 * np.abs(plain).max())


def test_the_dtype_chooses_the_form_of_group_norm():
    """float32 is for a CPU, whose bits are those of the sum followed by the norm."""
    x, scale, bias, offset = narrow_norm_arguments(jnp.float32)
    params = {"params": {"scale": scale, "bias": bias}}
    apply = jax.jit(GroupNorm(4, 1e-6).apply)
    plain = jax.jit(lambda x: group_norm(x + offset[:, None, None], scale, bias, 4, 1e-6))
    np.testing.assert_array_equal(apply(params, x, offset), plain(x))
    for dtype in (jnp.float32, jnp.bfloat16):
        program = str(jax.make_jaxpr(apply)(params, x.astype(dtype), offset.astype(dtype)))
        assert ("group_norm_of_few_kernels" in program) == (dtype == jnp.bfloat16)


def test_group_norm_of_a_constant_is_zero():
    x = jnp.full((2, 16, 16, 8), 3.0)
    np.testing.assert_array_equal(group_norm(x, jnp.ones(8), jnp.zeros(8), 4, 1e-6), 0)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        jax.eval_shape(GroupNorm(3).init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


@partial(jax.jit, static_argnums=0)
def norm_gradients(norm, weights, *arguments):
    return jax.grad(lambda *a: jnp.sum(weights * norm(*a)), (0, 1, 2))(*arguments)


def test_group_norm_gradient_matches_the_plain_formula():
    ours = lambda *a: group_norm(*a, 4, 1e-6)  # noqa: E731
    plain = lambda *a: exact_group_norm(*a, 4, 1e-6, jnp)  # noqa: E731
    for mean in (0.0, 30.0):
        arguments = norm_inputs(mean)
        weights = np.random.default_rng(3).standard_normal(arguments[0].shape, np.float32)
        grads = [norm_gradients(norm, weights, *arguments) for norm in (ours, plain)]
        for our, expected in zip(*grads, strict=True):
            tolerance = 3e-4 * np.abs(expected).max()
            case = f"mean {mean}"
            np.testing.assert_allclose(our, expected, rtol=1e-3, atol=tolerance, err_msg=case)


@pytest.mark.parametrize("mean", [30.0, 300.0])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_without_a_pilot_far_means_lose_no_more_than_the_rounding_of_x(dtype, mean):
    values = np.random.default_rng(0).standard_normal((2, 16, 16, 32)) + mean
    x = jnp.asarray(values, dtype)
    arguments = jnp.ones(32, jnp.float32), jnp.zeros(32, jnp.float32), 8, 1e-5
    by_group = values.reshape(2, 16, 16, 8, 4)
    axes = {"axis": (1, 2, 4), "keepdims": True}
    exact = (by_group - by_group.mean(**axes)) / by_group.std(**axes)

    def error(normalise):
        normed = np.float64(normalise(x, *arguments).astype(jnp.float32))
        return np.abs(normed - exact.reshape(values.shape)).max()

    assert error(group_norm_of_few_kernels) <= 1.1 * error(group_norm)
