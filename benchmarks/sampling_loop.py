"""Measure the overhead of the sampling loop: a scan relative to as many separate forward passes.

    python benchmarks/sampling_loop.py [--recipe mnist] [--steps 50] [--batch-size 16] [--pairs 9]

Print the median ratio of interleaved pairs in one run, with the lowest and the highest. A ratio of
1 means that the sampler's own arithmetic, noise and loop cost nothing beside the network.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from sides import Ratio, ratio

import ddpm_jax as dj
from ddpm_jax import samplers
from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.devices import platform as platforms

NAMES = ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc")


def seconds(function, *arguments) -> float:
    """The seconds of a call, until its result is computed."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def overhead(config, name: str, steps: int, batch_size: int, pairs: int) -> Ratio:
    """The time of a sampling scan relative to as many forward passes, jitted one by one."""
    model = config.model
    schedule = config.objective.noise_schedule
    sampler = samplers.make(name)
    network = Partial(model.apply, jax.jit(model.init)(jax.random.key(0)))
    denoise = dj.make_denoiser(schedule, network)
    keys = dj.sample_keys(0, jnp.arange(batch_size))
    grid = dj.make_grid(schedule, dj.spaced(schedule.timesteps, steps))
    xT = dj.initial_noise(keys, model.image_shape)  # (b, h, w, c)
    forward = jax.jit(lambda network, xt, t: network(xt, t))
    timesteps = [jnp.full(batch_size, t) for t in grid.t.tolist()]

    def walk():
        return seconds(dj.sample, keys, denoise, sampler, grid, xT)

    def forward_passes():
        once = seconds(lambda: [forward(network, xT, t) for t in timesteps])
        return sampler.evaluations * once

    return ratio(walk, forward_passes, pairs)


def main(recipe: str, steps: int, batch_size: int, pairs: int) -> None:
    """Print a line for each sampler."""
    platforms.order_for_memory()
    config = load_recipe(recipe)
    parameters = config.model.parameter_count()
    print(f"{recipe}, {parameters:,} parameters, {steps} steps of {batch_size} images")
    for name in NAMES:
        print(f"{name:<12} {overhead(config, name, steps, batch_size, pairs)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="mnist")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    main(**vars(parser.parse_args()))
