"""Our side of gpu.py: that of bench.py, with samples drawn in the precision of training."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import jax_side
import numpy as np
from jax.tree_util import Partial
from jax_side import STATE
from sides import serve

from ddpm_jax.devices import parallel
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import walk
from ddpm_jax.samplers import sample_keys


def device():
    """The platform that JAX runs on, and the kind of its device."""
    return jax.default_backend(), jax.devices()[0].device_kind


def sample(steps, count, sampler="ddim"):
    """Seconds of drawing so many pictures, the network computing in what it is trained in."""
    config, network = STATE["config"], Partial(STATE["apply"], STATE["state"].params)
    began = time.perf_counter()
    keys = parallel.shard(sample_keys(0, jnp.arange(count)))
    sampling = Sampling(sampler=sampler, steps=steps)
    *_, x0 = walk(keys, config.objective, network, config.model.image_shape, sampling, 1)
    np.asarray(x0)
    return time.perf_counter() - began


def flops():
    """Floating-point operations of one picture's forward pass.

    XLA's count of the program before it optimizes: afterwards it does not see into the convolutions of cuDNN. Products
    with the zeros around a picture are left out.
    """
    config = STATE["config"]
    apply = jax.jit(partial(config.model.apply, dtype=jnp.dtype(config.training.dtype)))
    lowered = apply.lower(
        STATE["state"].params, jnp.zeros((1, *config.model.image_shape)), jnp.zeros(1, jnp.int32)
    )
    return lowered.cost_analysis()["flops"]


if __name__ == "__main__":
    serve(
        jax_side.FUNCTIONS | {function.__name__: function for function in (device, sample, flops)}
    )
