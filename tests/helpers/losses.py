"""What the tests of the losses share: a schedule, keys, Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.losses import simple_loss
from ddpm_jax.diffusion.schedule import from_betas, linear_betas

SCHEDULE = from_betas(linear_betas())
TARGETS = ["eps", "x0", "v", "flow"]
STD = 0.5
loss_of = jax.jit(simple_loss, static_argnames="target")


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def gaussian(count):
    x0 = STD * np.random.default_rng(7).standard_normal((count, 4, 4, 1))
    return jnp.asarray(x0, jnp.float32)
