"""Shared by the tests of the losses: keys, Gaussian images."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.losses import simple_loss

TARGETS = ["eps", "x0", "v", "flow"]
STD = 0.5
jitted_simple_loss = jax.jit(simple_loss, static_argnames="target")


def example_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def gaussian_images(n):
    """n images (4, 4, 1) from N(0, STD^2 I)."""
    x0 = STD * np.random.default_rng(7).standard_normal((n, 4, 4, 1))
    return jnp.asarray(x0, jnp.float32)
