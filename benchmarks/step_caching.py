"""What step caching gains and costs on a trained net: seconds of the full walk over those of the cached one, and PSNR.

    python benchmarks/step_caching.py --ckpt runs/mnist [--steps 50] [--num 16] [--pairs 5] [--sampler ddim]

The walks take turns in pairs: the median ratio with its lowest and highest. The PSNR, in dB, is of the cached walk's
pictures in [-1, 1] (peak 2) against the full walk's from the same noise: over all pixels, and of the worst picture.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from sides import ratio

from ddpm_jax import command_line, parallel
from ddpm_jax.diffusion import Sampling
from ddpm_jax.generation import apply_of, labels_of, network_of
from ddpm_jax.models import Params
from ddpm_jax.on_run import OnRun, open_any
from ddpm_jax.recipe import Recipe
from ddpm_jax.samplers import sample_keys

INTERVALS, DEPTHS = (2, 3, 5), (0, 1, 2)


class Walk:
    """A walk from the same noises each time, timed by a call; `x0` is where the last one ended."""

    def __init__(self, recipe: Recipe, params: Params, num: int, sampling: Sampling):
        classes, indices = jnp.asarray(labels_of(recipe.model, None)), jnp.arange(num)
        labels = parallel.shard(classes[indices % len(classes)])
        network = network_of(
            recipe.model, parallel.replicate(params), labels, sampling, apply_of(recipe.model, sampling)
        )
        keys = parallel.shard(sample_keys(0, indices))
        self._walk = recipe.objective.walk, keys, network, recipe.model.image_shape, sampling, 1
        self.x0 = jnp.zeros(())

    def __call__(self) -> float:
        walk, *arguments = self._walk
        began = time.perf_counter()
        *_, self.x0 = walk(*arguments)
        jax.block_until_ready(self.x0)
        return time.perf_counter() - began


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """10 log10(peak^2 / mean squared error) of pictures in [-1, 1]; inf where they are the same."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(4 / np.mean((np.asarray(found, np.float64) - wanted) ** 2)))


def main(ckpt: str, steps: int, num: int, pairs: int, sampler: str) -> None:
    """Prints a line for each interval and depth."""
    source = open_any(ckpt)
    command_line.set_up_jax(num, None, cache=True)
    recipe, params = source.recipe, source.params(OnRun.weights)
    plain = recipe.sampling.changed(sampler=sampler, steps=steps, cache_interval=None, cache_depth=0)
    full = Walk(recipe, params, num, plain)
    net = f"{type(recipe.model).__name__}, {recipe.model.parameter_count():,} parameters"
    print(f"{net}, {steps} steps of {sampler}, {num} pictures, {parallel.describe_devices()}")
    for depth in DEPTHS[: recipe.model.layers_per_level + 1]:
        for interval in INTERVALS:
            walk = Walk(recipe, params, num, plain.changed(cache_interval=interval, cache_depth=depth))
            gain = ratio(full, walk, pairs)
            found, wanted = np.asarray(walk.x0), np.asarray(full.x0)
            worst = min(map(psnr, found, wanted))
            print(
                f"interval {interval}, depth {depth}: {gain} times as fast, {psnr(found, wanted):.1f} dB ({worst:.1f})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--sampler", default="ddim")
    for name, default in (("steps", 50), ("num", 16), ("pairs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
