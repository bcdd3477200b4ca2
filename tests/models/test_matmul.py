"""Matrix products with their own gradients: values, gradients, maps, and the program for a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows, matmul_by_rows_to_float32


def plain_by_rows(a, b):
    return jnp.matmul(a, b.swapaxes(-1, -2))


PLAIN = {
    matmul: jnp.matmul,
    matmul_by_rows: plain_by_rows,
    matmul_by_rows_to_float32: plain_by_rows,
}
FUNCTIONS = pytest.mark.parametrize("function", PLAIN, ids=["matmul", "by_rows", "to_float32"])


def example_arguments(function, stack):
    """Two stacks of matrices whose shapes fit the function."""
    rng = np.random.default_rng(0)
    b_shape = (3, 4) if function is matmul else (4, 3)
    shapes = [(*stack, 5, 3), (*stack, *b_shape)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@partial(jax.jit, static_argnums=0)
def all_orders(product, *args):
    """The product and its first to third order gradients, in both modes."""

    def loss(*args):
        return jnp.sum(jnp.sin(product(*args)))

    first = jax.grad(loss, (0, 1))
    third = jax.grad(lambda a: jnp.sum(jax.grad(loss)(a, args[1]) ** 2))(args[0])
    forward = jax.jvp(product, args, args), jax.jvp(first, args, args)
    return product(*args), first(*args), forward, third


def assert_close(ours, plain):
    """Assert that two trees of arrays agree to 1e-5."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("stack", [(), (2, 3)])
@FUNCTIONS
def test_values_and_gradients_of_every_order_match_jnp_matmul(function, stack):
    args = example_arguments(function, stack)
    assert_close(all_orders(function, *args), all_orders(PLAIN[function], *args))


@FUNCTIONS
def test_a_call_outside_jit_matches_numpy(function):
    a, b = example_arguments(function, ())
    expected = np.matmul(a, b) if function is matmul else np.matmul(a, b.T)
    assert_close(function(a, b), expected)


@FUNCTIONS
def test_vmap_works_over_either_argument_and_over_both(function):
    a, b = map(np.asarray, example_arguments(function, (2,)))
    transposed = b if function is matmul else b.swapaxes(1, 2)
    over_both = np.matmul(a, transposed)
    over_a = np.matmul(a, transposed[0])
    over_b = np.matmul(a[0], transposed)

    @jax.jit
    def maps(a, b):
        cases = ((0, 0), a, b), ((0, None), a, b[0]), ((None, 0), a[0], b)
        return [jax.vmap(function, axes)(*args) for axes, *args in cases]

    assert_close(maps(a, b), [over_both, over_a, over_b])


def test_gradients_of_stacks_do_not_contract_the_first_matrix_axis():
    """XLA's library for CPUs leaves a sum over the rows of left matrices to a slower product."""
    weights = jnp.ones((8, 64, 64))
    values = jnp.ones((8, 64, 4))

    def compiled_text(product):
        gradient = jax.grad(lambda weights, values: jnp.sum(product(weights, values) ** 2), (0, 1))
        return jax.jit(gradient).lower(weights, values).compile().as_text()

    assert "lhs_contracting_dims={1}" in compiled_text(jnp.matmul)
    assert "lhs_contracting_dims={1}" not in compiled_text(matmul)


@FUNCTIONS
def test_gradients_keep_the_matmul_precision_set_inside_jit(function):
    @jax.jit
    def gradient(*args):
        with jax.default_matmul_precision("highest"):
            return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))(*args)

    text = gradient.lower(*example_arguments(function, (2,))).as_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") == 3


def test_the_product_to_float32_takes_the_gradients_of_its_factors_in_their_dtype():
    args = [x.astype(jnp.bfloat16) for x in example_arguments(matmul_by_rows, ())]
    product, back = jax.vjp(matmul_by_rows_to_float32, *args)
    exact = matmul_by_rows(*(x.astype(jnp.float32) for x in args))
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, exact, rtol=1e-5, atol=1e-5)
    text = jax.jit(back).lower(product).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert not any("f32" in line for line in products)
