"""Print the memory of a training process after each stage of its start.

    python benchmarks/memory.py [--recipe butterflies] [--batch-size 16]

The recipe is one without classes and captions.

Two processes run, one with an empty compilation cache, which it fills, and one with the filled
cache. Each line is the resident memory at that moment and the most there ever was, in MiB, as the
kernel of Linux reports them. The stages are those of train.py on a CPU; "memory released" is after
`memory.release`, which train.py calls there.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np

from ddpm_jax.cli import arguments
from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.loading import InMemory
from ddpm_jax.devices import memory
from ddpm_jax.devices import platform as platforms
from ddpm_jax.runs.loop import first_state, parallel_train_step
from ddpm_jax.training.step import example_keys, step_by_micro_batches, training_keys

STEPS = 3


def say(stage: str) -> None:
    """Print the resident memory and its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    resident, peak = (int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    print(f"{stage:<24}{resident:6} {peak:6}", flush=True)


def train(recipe: str, batch_size: int) -> None:
    """Take a few training steps on random images, with a line after each stage."""
    print(f"{'':<24}{'now':>6} {'peak':>6}")
    say("imports")
    config = load_recipe(recipe)
    training = dataclasses.replace(config.training, batch_size=batch_size)
    config = dataclasses.replace(config, training=training)
    if platforms.will_use_cpu(None):
        memory.use_one_heap()
    platforms.order_for_memory()
    arguments.use_compilation_cache()
    platforms.use_cpu_cores(batch_size, None, config.cores_per_device())
    shape = (batch_size, *config.model.image_shape)
    images = InMemory(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    tx = config.make_optimizer(len(images))
    state = jax.block_until_ready(first_state(config, tx))
    say("state")
    step = parallel_train_step(config, tx)
    keys = example_keys(training_keys(0)[1], 0, np.arange(batch_size, dtype=np.int32))
    batch = batch_at(images, 0, 0, batch_size) | {"key": keys}
    shards = step.shard_batch(batch)
    memory.release()
    say("memory released")
    lowered = step.mapped.lower(state, shards)
    say("lowered")
    needed = lowered.compile().memory_analysis()
    say("compiled or loaded")
    memory.release()
    memory.keep_freed()
    say("memory released")
    for number in range(1, STEPS + 1):
        state, _ = step_by_micro_batches(step, state, batch, config.training.accumulation)
        jax.block_until_ready(state)
        say(f"step {number}")
    given = needed.argument_size_in_bytes >> 20
    temporaries = needed.temp_size_in_bytes >> 20
    print(f"the step itself: {given} MiB of arguments, {temporaries} MiB of temporaries")


def main() -> None:
    """Run both processes, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="butterflies")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--one", action="store_true", help="run one process, in this one")
    options = parser.parse_args()
    if options.one:
        train(options.recipe, options.batch_size)
        return
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        again = partial(subprocess.run, [sys.executable, *sys.argv, "--one"], env=env, check=True)
        for state in ("empty", "filled"):
            print(f"compilation cache {state}", flush=True)
            again()


if __name__ == "__main__":
    main()
