"""The price of the sampling loop: a scan of N steps over as many single forward passes of the same net.

    python benchmarks/sampling_loop.py [--recipe mnist] [--steps 50] [--batch-size 16] [--pairs 9]

One interleaved run of pairs; prints the median ratio with its lowest and highest. 1 means that the sampler's own
arithmetic, noise and loop cost nothing beside the net.
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

NAMES = ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc")


def seconds(function, *arguments) -> float:
    """The time of a call until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def tax(config, name: str, steps: int, batch_size: int, pairs: int) -> Ratio:
    """The walk's time over that of the forward passes that it makes, each jitted by itself."""
    model, schedule, sampler = config.model, config.objective.noise_schedule, samplers.make(name)
    network = Partial(model.apply, jax.jit(model.init)(jax.random.key(0)))
    denoise = dj.make_denoiser(schedule, network)
    keys = dj.sample_keys(0, jnp.arange(batch_size))
    grid, xT = (
        dj.make_grid(schedule, dj.spaced(schedule.timesteps, steps)),
        dj.initial_noise(keys, model.image_shape),
    )
    forward = jax.jit(lambda network, xt, t: network(xt, t))
    times = [jnp.full(batch_size, t) for t in grid.t.tolist()]

    def walk():
        return seconds(dj.sample, keys, denoise, sampler, grid, xT)

    def forwards():
        return sampler.evaluations * seconds(lambda: [forward(network, xT, t) for t in times])

    return ratio(walk, forwards, pairs)


def main(recipe: str, steps: int, batch_size: int, pairs: int) -> None:
    """Prints a line for each sampler."""
    config = load_recipe(recipe, ROOT / "configs")
    print(
        f"{recipe}, {config.model.parameter_count():,} parameters, {steps} steps of {batch_size} pictures"
    )
    for name in NAMES:
        print(f"{name:<12} {tax(config, name, steps, batch_size, pairs)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="mnist")
    for name, default in (("steps", 50), ("batch_size", 16), ("pairs", 9)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    main(**vars(parser.parse_args()))
