"""What the tests of the losses share: a schedule, keys, Gaussian data."""

import jax

from ddpm_jax.diffusion.schedule import from_betas, linear

SCHEDULE = from_betas(linear())
TARGETS = ["eps", "x0", "v", "flow"]
STD = 0.5


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def gaussian(count):
    return STD * jax.random.normal(jax.random.key(7), (count, 4, 4, 1))
