"""AdamW of optax with exact bias corrections, to compare the rest of a training step with PyTorch.

optax computes 1 - 0.999^n in float32. In the first steps this is too large by up to 5e-5 of its
value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def exact_adamw(learning_rate, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
    """optax's AdamW with 1 - b^n accurate to float32 precision."""
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None):
        _, state = adam.update(grads, state, params)
        mean_scale, square_scale = (-jnp.expm1(state.count * np.log(b)) for b in (b1, b2))
        updates = jax.tree.map(
            lambda mu, nu: (mu / mean_scale) / (jnp.sqrt(nu / square_scale) + eps),
            state.mu,
            state.nu,
        )
        return updates, state

    exact = optax.GradientTransformation(adam.init, update)
    return optax.chain(
        exact, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)
    )
