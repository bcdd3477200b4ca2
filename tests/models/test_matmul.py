"""Products whose gradients are products of the same kind, and what a CPU makes of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.kernels.matmul import matmul, matmul_by_rows

PLAIN = {matmul: jnp.matmul, matmul_by_rows: lambda a, b: jnp.matmul(a, b.swapaxes(-1, -2))}
FUNCTIONS = pytest.mark.parametrize("function", PLAIN, ids=["matmul", "by_rows"])


def example(function, stack):
    """Two arrays that the function takes."""
    rng = np.random.default_rng(0)
    shapes = [(*stack, 5, 3), (*stack, 3, 4) if function is matmul else (*stack, 4, 3)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@partial(jax.jit, static_argnums=0)
def orders(product, *args):
    """The product, its gradients of first to third order, in both modes."""

    def loss(*args):
        return jnp.sum(jnp.sin(product(*args)))

    first = jax.grad(loss, (0, 1))
    third = jax.grad(lambda a: jnp.sum(jax.grad(loss)(a, args[1]) ** 2))(args[0])
    forward = jax.jvp(product, args, args), jax.jvp(first, args, args)
    return product(*args), first(*args), forward, third


def close(ours, plain):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.parametrize("stack", [(), (2, 3)])
@FUNCTIONS
def test_values_and_gradients_of_every_order_are_those_of_the_plain_product(function, stack):
    args = example(function, stack)
    close(orders(function, *args), orders(PLAIN[function], *args))


@FUNCTIONS
def test_a_call_outside_of_jit_is_the_product(function):
    args = example(function, ())
    wanted = np.matmul(*args) if function is matmul else np.matmul(args[0], args[1].T)
    close(function(*args), wanted)


@FUNCTIONS
def test_a_map_over_either_argument_or_both(function):
    a, b = map(np.asarray, example(function, (2,)))
    plain = np.matmul(a, b) if function is matmul else np.matmul(a, b.swapaxes(1, 2))
    other = np.matmul(a, b[0]) if function is matmul else np.matmul(a, b[0].T)
    third = np.matmul(a[0], b) if function is matmul else np.matmul(a[0], b.swapaxes(1, 2))

    @jax.jit
    def maps(a, b):
        cases = ((0, 0), a, b), ((0, None), a, b[0]), ((None, 0), a[0], b)
        return [jax.vmap(function, axes)(*args) for axes, *args in cases]

    close(maps(a, b), [plain, other, third])


def test_the_gradients_of_a_stack_sum_over_no_first_axis():
    """XLA's library for a CPU leaves a product over the rows of the left matrix to a slower one."""
    weights, values = jnp.ones((8, 64, 64)), jnp.ones((8, 64, 4))

    def text(product):
        gradient = jax.grad(lambda weights, values: jnp.sum(product(weights, values) ** 2), (0, 1))
        return jax.jit(gradient).lower(weights, values).compile().as_text()

    assert "lhs_contracting_dims={1}" in text(jnp.matmul)
    assert "lhs_contracting_dims={1}" not in text(matmul)


@FUNCTIONS
def test_a_precision_asked_for_within_a_jitted_function_is_kept_in_its_gradients_too(function):
    @jax.jit
    def gradient(*args):
        with jax.default_matmul_precision("highest"):
            return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))(*args)

    text = gradient.lower(*example(function, (2,))).as_text()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") == 3
