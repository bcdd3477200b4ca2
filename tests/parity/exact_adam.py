"""AdamW with the rounding of PyTorch's, to compare the rest of a training step with PyTorch.

optax differs from PyTorch in two roundings, which are the same in every step and so add up:

- It computes 1 - 0.999^n in float32. In the first steps this is too large by up to 5e-5 of its
  value.
- It computes a moving average as b * old + (1 - b) * new, and the two float32 weights do not sum to
  1: for b = 0.9 the average of a constant is too large by 2.4e-7 of its value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MAX_UPDATES = 1000


class State(NamedTuple):
    """The number of updates, and the moving averages of the gradient and of its square.

    The names are those of optax's own state.
    """

    count: jax.Array
    mu: optax.Params
    nu: optax.Params


def exact_adamw(learning_rate, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
    """AdamW (Loshchilov & Hutter 2019), accurate to float32 precision for MAX_UPDATES updates."""
    n = np.arange(1, MAX_UPDATES + 1)
    mean_scales = (1 - b1**n).astype(np.float32)
    square_scales = (1 - b2**n).astype(np.float32)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return State(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads, state, params=None):
        mean = jax.tree.map(lambda m, g: m + (1 - b1) * (g - m), state.mu, grads)
        square = jax.tree.map(lambda v, g: v + (1 - b2) * (g * g - v), state.nu, grads)
        mean_scale = jnp.asarray(mean_scales)[state.count]
        square_scale = jnp.asarray(square_scales)[state.count]
        updates = jax.tree.map(
            lambda m, v: (m / mean_scale) / (jnp.sqrt(v / square_scale) + eps), mean, square
        )
        return updates, State(state.count + 1, mean, square)

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
