"""The price of the sampling loop: a scan of N steps over as many single forward passes of the same net.

    python benchmarks/sampling_loop.py [--steps 50] [--batch-size 16] [--pairs 9]

One interleaved run of pairs; prints the median ratio with its lowest and highest. 1 means that the sampler's own
arithmetic, noise and loop cost nothing beside the net.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import ddpm_jax as dj
from configs.mnist import config
from ddpm_jax import samplers

NAMES = ("ddpm", "ddim", "heun", "dpmpp_2m", "unipc")


def seconds(function, *arguments) -> float:
    """The time of a call until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def main(steps: int, batch_size: int, pairs: int) -> None:
    """Prints a line for each sampler."""
    model, schedule = config.model, config.objective.noise_schedule()
    network = Partial(model.apply, jax.jit(model.init)(jax.random.key(0)))
    denoise = dj.make_denoiser(schedule, network)
    keys = dj.sample_keys(0, jnp.arange(batch_size))
    grid, xT = dj.make_grid(schedule, dj.spaced(schedule.timesteps, steps)), dj.initial_noise(keys, model.image_shape)
    forward = jax.jit(lambda network, xt, t: network(xt, t))
    times = [jnp.full(batch_size, t) for t in grid.t.tolist()]

    def forwards():
        return [forward(network, xT, t) for t in times]

    print(f"{type(model).__name__}, {model.parameter_count():,} parameters, {steps} steps of {batch_size} pictures")
    for name in NAMES:
        sampler = samplers.make(name)

        def walk(sampler=sampler):
            return dj.sample(keys, denoise, sampler, grid, xT)

        seconds(walk), seconds(forwards)
        ratios = [seconds(walk) / seconds(forwards) / sampler.evaluations for _ in range(pairs)]
        print(f"{name:<12} {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 50), ("batch_size", 16), ("pairs", 9)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    main(**vars(parser.parse_args()))
