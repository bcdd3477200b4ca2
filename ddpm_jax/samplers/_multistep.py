"""What methods that remember earlier steps share: their history, and integrals of polynomials through it.

Each of them moves x by an integral over the step whose integrand, x0 or eps, is known at this and at earlier levels,
and differs in the variable in which a polynomial goes through these, and in the weight under the integral.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

NODES, WEIGHTS = (array / 2 for array in np.polynomial.legendre.leggauss(16))
NODES = NODES + 0.5


def history(length: int) -> Partial:
    """The `init` of a method that remembers the `length` newest (values, positions); one at inf is none."""
    return Partial(_history_of(length))


@functools.cache  # one object a length, so that jit does not take an equal sampler for another program
def _history_of(length):
    def init(xT):
        return jnp.stack([xT] * length), jnp.full(length, jnp.inf, xT.dtype)

    return init


def remember(state, value, position):
    """The history with `value` at `position` in front, and the oldest gone."""
    values, positions = state
    position = jnp.asarray(position, positions.dtype)
    return jnp.concatenate([value[None], values[:-1]]), jnp.concatenate(
        [position[None], positions[:-1]]
    )


def count_known(positions):
    """How many entries, from the newest on, are at a finite position."""
    return jnp.sum(
        jnp.cumprod(jnp.isfinite(positions).astype(jnp.int32), dtype=jnp.int32), dtype=jnp.int32
    )


def full_order(row, order):
    """The order, whatever the row."""
    return order


def reduced_final_order(row, order):
    """The order, and in walks of fewer than 15 steps at most as many as there are steps left, as in diffusers."""
    return jnp.where(row.steps < 15, jnp.minimum(order, row.steps - row.i), order)


def integral_weights(nodes, moments, count):
    """The weight of each node in the integral of the polynomial through the first `count` of them; 0 for the others.

    nodes (k,) are measured so that the step goes from 0 to 1, moments (k,) are the integrals of 1, s, ..., s^(k-1):
    sum_k weight_k node_k^j = moment_j for j < count.
    """
    j = jnp.arange(nodes.size, dtype=jnp.int32)
    used = j < count
    powers = jnp.where(used, nodes, 0)[None, :] ** j[:, None].astype(nodes.dtype)
    unused = jnp.eye(nodes.size, dtype=nodes.dtype)
    matrix = jnp.where(used[:, None] & used[None, :], powers, unused)
    return jnp.linalg.solve(matrix, jnp.where(used, moments, 0))


def uniform_moments(length: int, dtype):
    """Integrals of 1, s, s^2, ... over [0, 1]."""
    return jnp.asarray(1 / (1 + np.arange(length)), dtype)


def exponential_moments(length: int, h, *, growing: bool):
    """Means over s in [0, 1] of 1, s, s^2, ... under the weight exp(-h s), or exp(-h (1 - s)) if `growing`.

    By quadrature with 16 nodes: the closed forms divide small differences by powers of h.
    """
    s = jnp.asarray(NODES, h.dtype)
    weight = jnp.asarray(WEIGHTS, h.dtype) * jnp.exp(-h * ((1 - s) if growing else s))
    return jnp.stack([jnp.sum(weight * s**j) for j in range(length)]) / jnp.sum(weight)


def exponential_mean(h, nodes, values, count):
    """The mean over the step of the polynomial through the first `count` values, under the weight exp(-h (1 - s))."""
    moments = exponential_moments(len(nodes), h, growing=True)
    return values[0] + change_from_newest(integral_weights(nodes, moments, count), values)


def change_from_newest(weights, values):
    """sum_k weights_k (values_k - values_0): what earlier values add to the newest in a mean."""
    return jnp.tensordot(weights, values - values[:1], 1)
