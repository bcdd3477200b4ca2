"""Shared by multistep methods: a history of values, and integrals of polynomials through it.

Each method moves x by an integral over the step. The integrand, x0 or eps, is known at the current
noise level and at earlier ones. Methods differ in the variable of the polynomial through these
values, and in the weight under the integral.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

# Gauss-Legendre quadrature with 16 nodes, on [0, 1] in place of [-1, 1].
_nodes, _weights = np.polynomial.legendre.leggauss(16)
NODES = _nodes / 2 + 0.5
WEIGHTS = _weights / 2


def history(length: int) -> Partial:
    """The `init` of a method that keeps its `length` newest values and their positions.

    The state is values (length, b, h, w, c) and positions (length,), the newest first. An entry at
    position inf is empty.
    """
    return Partial(_history_init(length))


# jit compares functions by identity: one object per length lets equal samplers share a program.
@functools.cache
def _history_init(length):
    def init(xT):
        return jnp.stack([xT] * length), jnp.full(length, jnp.inf, xT.dtype)

    return init


def remember(state, value, position):
    """Put `value` at `position` in front of the history, and drop the oldest entry."""
    values, positions = state
    position = jnp.asarray(position, positions.dtype)
    values = jnp.concatenate([value[None], values[:-1]])  # (length, b, h, w, c)
    positions = jnp.concatenate([position[None], positions[:-1]])  # (length,)
    return values, positions


def count_known(positions):
    """The number of entries before the first empty one, counted from the newest."""
    known = jnp.isfinite(positions).astype(jnp.int32)
    return jnp.sum(jnp.cumprod(known, dtype=jnp.int32), dtype=jnp.int32)


def has_length(h):
    """Whether a step of this h is neither to clean data nor of length 0, to its own noise level."""
    return jnp.isfinite(h) & (h != 0)


def full_order(row, order):
    """The order rule (row, order) -> order that keeps the order on every row."""
    return order


def reduced_final_order(row, order):
    """The order rule of diffusers: at most the number of steps left, if `steps` is below 15."""
    return jnp.where(row.steps < 15, jnp.minimum(order, row.steps - row.i), order)


def integral_weights(nodes, moments, num_nodes):
    """Quadrature weights: sum_k weight_k value_k is the integral of the interpolating polynomial.

    The polynomial interpolates the values at the first `num_nodes` nodes; the other weights are 0.
    nodes (k,) are in units of the step, which goes from 0 to 1. moments (k,) are the integrals of
    1, s, ..., s^(k-1). The weights solve sum_k weight_k node_k^j = moment_j for j < num_nodes.
    """
    j = jnp.arange(nodes.size, dtype=jnp.int32)
    used = j < num_nodes
    powers = jnp.where(used, nodes, 0)[None, :] ** j[:, None].astype(nodes.dtype)  # (k, k)
    # Unused nodes have the rows and columns of the identity, so that the matrix is invertible.
    identity = jnp.eye(nodes.size, dtype=nodes.dtype)
    matrix = jnp.where(used[:, None] & used[None, :], powers, identity)
    return jnp.linalg.solve(matrix, jnp.where(used, moments, 0))


def uniform_moments(length: int, dtype):
    """The integrals of 1, s, s^2, ... over [0, 1]."""
    return jnp.asarray(1 / (1 + np.arange(length)), dtype)


def exponential_moments(length: int, h, *, growing: bool):
    """Weighted means of 1, s, s^2, ... over s in [0, 1].

    The weight is exp(-h s), or exp(-h (1 - s)) if `growing`. The means are computed by quadrature
    with 16 nodes, because the closed forms divide small differences by powers of h.
    """
    s = jnp.asarray(NODES, h.dtype)
    exponent = 1 - s if growing else s
    weight = jnp.asarray(WEIGHTS, h.dtype) * jnp.exp(-h * exponent)
    return jnp.stack([jnp.sum(weight * s**j) for j in range(length)]) / jnp.sum(weight)


def exponential_mean(h, nodes, values, num_nodes):
    """The weighted mean over the step of the polynomial through the first `num_nodes` values.

    The weight is exp(-h (1 - s)), where s goes from 0 to 1 over the step. The values
    (k, b, h, w, c) are at the nodes (k,).
    """
    moments = exponential_moments(len(nodes), h, growing=True)
    weights = integral_weights(nodes, moments, num_nodes)
    return values[0] + change_from_newest(weights, values)


def change_from_newest(weights, values):
    """sum_k weights_k (values_k - values_0): the weighted mean of all values minus the newest."""
    return jnp.tensordot(weights, values - values[:1], 1)
