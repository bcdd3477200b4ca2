"""Our side of bench.py and gpu.py: training steps, forward passes and samples, by what train.py and sample.py run."""

import dataclasses
import resource
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
import sampling_loop
from sides import serve

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data import InMemory
from ddpm_jax.data.batches import batch_at, stream
from ddpm_jax.devices import parallel
from ddpm_jax.devices import platform as platforms
from ddpm_jax.generation.generate import generate
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.pipeline_folder import save_pretrained
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.loop import parts_of
from ddpm_jax.training.step import (
    example_keys,
    init_state,
    make_train_step,
    model_loss,
    step_by_micro_batches,
)

PICTURES = 1000
STATE = {}


def versions():
    """What the figures are of."""
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
):
    """The recipe's net without dropout, on fresh parameters, which go to `folder` too.

    On so many `devices` of the CPU, or as many as train.py or, for `sampling`, sample.py would use. Returns how many
    of them train.py would use for each two cores.
    """
    config = load_recipe(recipe, ROOT / "configs")
    model = dataclasses.replace(config.model, dropout=0.0)
    changed = {
        "batch_size": batch_size * accumulation,
        "accumulation": accumulation,
        "dtype": dtype,
    }
    config = dataclasses.replace(
        config, model=model, training=dataclasses.replace(config.training, **changed)
    )
    platforms.use_cpu_cores(batch_size, devices, 1 if sampling else config.cores_per_device())
    params = jax.tree.map(lambda x: x + 0.01, model.init(jax.random.key(0)))
    if folder is not None:
        save_pretrained(config, params, folder)
    tx = config.make_optimizer(PICTURES)
    state = parallel.replicate(jax.jit(init_state, static_argnums=(1, 2))(params, tx, config.ema))
    loss = model_loss(model, config.objective, dtype)
    step = parallel.parallelize(lambda axis: make_train_step(loss, tx, config.ema, axis), route)
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, *model.image_shape), np.uint8)
    STATE.clear()
    STATE.update(config=config, state=state, step=step, images=InMemory(pictures))
    STATE["apply"] = parallel.per_shard(partial(model.apply, dtype=jnp.dtype(dtype)))
    STATE["forward"] = jax.jit(STATE["apply"])
    STATE["image"] = batch(0)["image"]
    return 2 // config.cores_per_device()


def batch(step):
    """The batch of a step, of pictures in memory, as train.py has it."""
    config = STATE["config"]
    return batch_at(STATE["images"], 0, step, config.training.batch_size, flip=config.data.flip)


def train_on(image, step):
    """One optimizer step; it may be at work still."""
    given = {"image": image, "key": example_keys(jax.random.key(1), step, jnp.arange(len(image)))}
    accumulation = STATE["config"].training.accumulation
    STATE["state"], _ = step_by_micro_batches(STATE["step"], STATE["state"], given, accumulation)


def train(steps):
    """Seconds of so many training steps, after one that is not counted: a process that lay idle is slow at first."""
    train_on(STATE["image"], 0)
    jax.block_until_ready(STATE["state"])
    began = time.perf_counter()
    for step in range(steps):
        train_on(STATE["image"], step)
    jax.block_until_ready(STATE["state"])
    return time.perf_counter() - began


def feed(steps):
    """Seconds in which the batches of so many steps are made, with nothing else to do."""
    began = time.perf_counter()
    for _ in stream(batch, 0, steps):
        pass
    return time.perf_counter() - began


def wait(steps):
    """The share of so many training steps, fed by the stream, in which the loop waits for the next batch."""
    began, waited, batches = time.perf_counter(), 0.0, stream(batch, 0, steps)
    for step in range(steps):
        asked = time.perf_counter()
        image = next(batches)["image"]
        waited += time.perf_counter() - asked
        train_on(image, step)
    jax.block_until_ready(STATE["state"])
    return waited / (time.perf_counter() - began)


def save(wait):
    """Seconds for which a checkpoint stops training: until it is whole on disk, or till it is copied, and its bytes."""
    with tempfile.TemporaryDirectory() as folder, CheckpointWriter(folder) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(1, parts_of(STATE["state"]), {})
        if wait:
            checkpoints.wait()
        return time.perf_counter() - began, sum(x.nbytes for x in jax.tree.leaves(STATE["state"]))


def forward(times):
    """Seconds of so many passes, after one that is not counted."""
    x = parallel.shard(STATE["image"])
    t = parallel.shard(np.full(len(x), 500))
    jax.block_until_ready(STATE["forward"](STATE["state"].params, x, t))
    began = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(STATE["forward"](STATE["state"].params, x, t))
    return time.perf_counter() - began


def sample(steps, count):
    """Seconds of drawing so many pictures by DDIM."""
    began = time.perf_counter()
    sampling = Sampling(sampler="ddim", steps=steps)
    generate(
        STATE["config"],
        STATE["state"].params,
        num=count,
        batch_size=count,
        seed=0,
        sampling=sampling,
    )
    return time.perf_counter() - began


def loop_tax(recipe, sampler, steps, batch_size, pairs):
    """The `Ratio` of a sampling scan to as many single forward passes."""
    return sampling_loop.tax(
        load_recipe(recipe, ROOT / "configs"), sampler, steps, batch_size, pairs
    )


def peak():
    """The most memory this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


ASKED = (versions, load, train, feed, wait, save, forward, sample, loop_tax, peak)
FUNCTIONS = {function.__name__: function for function in ASKED}

if __name__ == "__main__":
    serve(FUNCTIONS)
