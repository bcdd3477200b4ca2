"""Our side of gpu.py: like jax_side.py, but samples are drawn in the dtype of training."""

import time

import hlo
import jax
import jax.numpy as jnp
import jax_side
import numpy as np
import operations
from jax.tree_util import Partial
from jax_side import STATE
from sides import serve

from ddpm_jax.devices import parallel
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import walk
from ddpm_jax.samplers import sample_keys
from ddpm_jax.training.step import example_keys


def device():
    """The platform that JAX runs on, the kind of its device, and the version of its software."""
    device = jax.devices()[0]
    version = " ".join(device.client.platform_version.split())
    return jax.default_backend(), device.device_kind, version


def sample(steps, num_images, sampler="ddim"):
    """Draw images, with the network in the dtype of training. Return the seconds."""
    config = STATE["config"]
    network = Partial(STATE["apply"], STATE["state"].params)
    began = time.perf_counter()
    keys = parallel.shard(sample_keys(0, jnp.arange(num_images)))
    sampling = Sampling(sampler=sampler, steps=steps)
    *_, x0 = walk(keys, config.objective, network, config.model.image_shape, sampling, 1)
    np.asarray(x0)
    return time.perf_counter() - began


def flops():
    """The floating-point operations of a forward pass of one image."""
    config = STATE["config"]
    return operations.of_image(config.model, config.training.dtype)


def work():
    """The kernels of a training step as it is compiled here, and the bytes that they move."""
    step = STATE["step"]
    image = STATE["image"]
    batch = {"image": image, "key": example_keys(jax.random.key(1), 0, jnp.arange(len(image)))}
    lowered = step.mapped.lower(STATE["state"], step.shard_batch(batch))
    launched, moved = hlo.totals(hlo.kernels(lowered.compile().as_text()), lambda kernel: "")
    return launched.total(), moved.total()


if __name__ == "__main__":
    own = {function.__name__: function for function in (device, sample, flops, work)}
    serve(jax_side.FUNCTIONS | own)
