"""Products whose gradients are products of the same kind, and what a CPU makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows

PLAIN = {matmul: jnp.matmul, matmul_by_rows: lambda a, b: jnp.matmul(a, b.swapaxes(-1, -2))}


def example(function, stack):
    """Two arrays that the function takes."""
    shapes = [(*stack, 5, 3), (*stack, 3, 4) if function is matmul else (*stack, 4, 3)]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def close(ours, plain):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
@pytest.mark.parametrize("function", PLAIN, ids=["matmul", "by_rows"])
def test_values_and_gradients_of_every_order_are_those_of_the_plain_product(function, stack):
    args = example(function, stack)

    def loss(product):
        return lambda *args: jnp.sum(jnp.sin(product(*args)))

    def all_of(product):
        first = jax.grad(loss(product), (0, 1))
        return product(*args), first(*args), jax.jvp(product, args, args), jax.jvp(first, args, args)

    close(all_of(function), all_of(PLAIN[function]))
    third = [
        jax.grad(lambda a, f=f: jnp.sum(jax.grad(loss(f))(a, args[1]) ** 2))(args[0])
        for f in (function, PLAIN[function])
    ]
    close(*third)


@pytest.mark.parametrize("function", PLAIN, ids=["matmul", "by_rows"])
def test_a_map_over_either_argument_or_both(function):
    a, b = example(function, (2,))
    for axes, args in (((0, 0), (a, b)), ((0, None), (a, b[0])), ((None, 0), (a[0], b))):
        close(jax.vmap(function, axes)(*args), jax.vmap(PLAIN[function], axes)(*args))


def test_the_gradients_of_a_stack_sum_over_no_first_axis():
    """XLA's library for a CPU leaves a product over the rows of the left matrix to a slower one."""
    weights, values = jnp.ones((8, 64, 64)), jnp.ones((8, 64, 4))

    def text(product):
        gradient = jax.grad(lambda weights, values: jnp.sum(product(weights, values) ** 2), (0, 1))
        return jax.jit(gradient).lower(weights, values).compile().as_text()

    assert "lhs_contracting_dims={1}" in text(jnp.matmul)
    assert "lhs_contracting_dims={1}" not in text(matmul)


@pytest.mark.parametrize("function", PLAIN, ids=["matmul", "by_rows"])
def test_a_precision_asked_for_within_a_jitted_function_is_kept_in_its_gradients_too(function):
    @jax.jit
    def gradient(*args):
        with jax.default_matmul_precision("highest"):
            return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))(*args)

    text = gradient.lower(*example(function, (2,))).as_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") == 3
