"""Our side of bench.py and gpu.py: training steps, forward passes and samples.

It runs the same code as train.py and sample.py.
"""

import dataclasses
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import operations
import sampling_loop
from sides import serve

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.batches import batch_at, stream
from ddpm_jax.data.loading import InMemory
from ddpm_jax.devices import memory, parallel
from ddpm_jax.devices import platform as platforms
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.pipeline_folder import save_pretrained
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.loop import checkpoint_items, parallel_train_step
from ddpm_jax.training.step import example_keys, init_state, step_by_micro_batches

NUM_IMAGES = 1000
STATE = {}


def versions():
    """The version of JAX and the devices."""
    return {"jax": jax.__version__, "devices": parallel.describe_devices()}


def load(
    recipe,
    batch_size,
    folder=None,
    sampling=False,
    devices=None,
    route="pmap",
    accumulation=1,
    dtype="float32",
    keeps_memory=True,
):
    """Load a recipe's network without dropout and with fresh parameters; save it to `folder` too.

    `devices` is the number of virtual CPU devices, by default that of train.py, or with `sampling`
    that of sample.py. `keeps_memory` keeps freed memory for the next step, as train.py does. Return
    the number of devices that train.py uses per two cores.
    """
    config = load_recipe(recipe)
    model = dataclasses.replace(config.model, dropout=0.0)
    training = dataclasses.replace(
        config.training,
        batch_size=batch_size * accumulation,
        accumulation=accumulation,
        dtype=dtype,
    )
    route_of_step = dataclasses.replace(config.parallel, route=route)
    config = dataclasses.replace(config, model=model, training=training, parallel=route_of_step)
    keeps_memory = keeps_memory and not sampling and platforms.will_use_cpu(None)
    if keeps_memory:
        memory.use_one_heap()
    platforms.order_for_memory()
    platforms.use_cpu_cores(batch_size, devices, 1 if sampling else config.cores_per_device())
    # Some parameters are 0 at initialisation, which would make the network's output 0.
    params = jax.tree.map(lambda x: x + 0.01, model.init(jax.random.key(0)))
    if folder is not None:
        save_pretrained(config, params, folder)
    tx = config.make_optimizer(NUM_IMAGES)
    state = parallel.replicate(jax.jit(init_state, static_argnums=(1, 2))(params, tx, config.ema))
    step = parallel_train_step(config, tx)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, *model.image_shape), np.uint8)
    STATE.clear()
    STATE.update(config=config, state=state, step=step, images=InMemory(images))
    STATE["apply"] = parallel.per_shard(partial(model.apply, dtype=jnp.dtype(dtype)))
    STATE["forward"] = jax.jit(STATE["apply"])
    STATE["image"] = batch(0)["image"]
    if keeps_memory:
        # Compile first, because memory that was needed for it is not kept.
        train_on(STATE["image"], 0)
        jax.block_until_ready(STATE["state"])
        memory.release()
        memory.keep_freed()
    return 2 // config.cores_per_device()


def batch(step):
    """The batch of a step, from images in memory, as train.py makes it."""
    config = STATE["config"]
    return batch_at(STATE["images"], 0, step, config.training.batch_size, flip=config.data.flip)


def train_on(image, step):
    """Start one optimizer step, without waiting for it."""
    keys = example_keys(jax.random.key(1), step, jnp.arange(len(image)))
    accumulation = STATE["config"].training.accumulation
    STATE["state"], _ = step_by_micro_batches(
        STATE["step"], STATE["state"], {"image": image, "key": keys}, accumulation
    )


def train(steps):
    """Run training steps and return the seconds.

    One step before them is not counted, because a process is slow at first after it was idle.
    """
    train_on(STATE["image"], 0)
    jax.block_until_ready(STATE["state"])
    began = time.perf_counter()
    for step in range(steps):
        train_on(STATE["image"], step)
    jax.block_until_ready(STATE["state"])
    return time.perf_counter() - began


def feed(steps):
    """Make the batches of some steps and do nothing else. Return the seconds."""
    began = time.perf_counter()
    for _ in stream(batch, 0, steps):
        pass
    return time.perf_counter() - began


def wait(steps):
    """Run training steps fed by the stream. Return the fraction of time spent waiting for it."""
    began = time.perf_counter()
    waited = 0.0
    batches = stream(batch, 0, steps)
    for step in range(steps):
        requested = time.perf_counter()
        image = next(batches)["image"]
        waited += time.perf_counter() - requested
        train_on(image, step)
    jax.block_until_ready(STATE["state"])
    return waited / (time.perf_counter() - began)


def save(wait):
    """Save a checkpoint. Return the seconds for which it stops training, and its bytes.

    With `wait`, training stops until the checkpoint is complete on disk, otherwise until it is
    copied.
    """
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(folder) as writer:
        began = time.perf_counter()
        writer.save(1, checkpoint_items(STATE["state"]), {})
        if wait:
            writer.wait()
        seconds = time.perf_counter() - began
        return seconds, sum(x.nbytes for x in jax.tree.leaves(STATE["state"]))


def forward(passes):
    """Run forward passes and return the seconds. One pass before them is not counted."""
    x = parallel.shard(STATE["image"])
    t = parallel.shard(np.full(len(x), 500))
    jax.block_until_ready(STATE["forward"](STATE["state"].params, x, t))
    began = time.perf_counter()
    for _ in range(passes):
        jax.block_until_ready(STATE["forward"](STATE["state"].params, x, t))
    return time.perf_counter() - began


def sample(steps, num_images):
    """Draw images with DDIM and return the seconds."""
    began = time.perf_counter()
    generate(
        STATE["config"],
        STATE["state"].params,
        num_images=num_images,
        batch_size=num_images,
        seed=0,
        sampling=Sampling(sampler="ddim", steps=steps),
    )
    return time.perf_counter() - began


def loop_overhead(recipe, sampler, steps, batch_size, pairs):
    """The `Ratio` of a sampling scan to as many single forward passes."""
    platforms.order_for_memory()
    return sampling_loop.overhead(load_recipe(recipe), sampler, steps, batch_size, pairs)


def network():
    """The recipe's network: shape of an image, widths, and which levels have attention."""
    model = STATE["config"].model
    return {
        "image_shape": model.image_shape,
        "widths": model.widths,
        "attention": model.attention,
    }


def clip_norm():
    """The largest norm of a gradient in the recipe, or None for no limit."""
    return STATE["config"].optimizer.clip_norm


def size():
    """The parameters of the network, and the operations of a forward pass of a batch."""
    config = STATE["config"]
    of_image = operations.of_image(config.model, config.training.dtype)
    return config.model.parameter_count(), of_image * config.training.batch_size


SERVED = (
    versions,
    load,
    train,
    feed,
    wait,
    save,
    forward,
    sample,
    loop_overhead,
    network,
    clip_norm,
    size,
)
FUNCTIONS = {function.__name__: function for function in SERVED}

if __name__ == "__main__":
    serve(FUNCTIONS)
