"""Size and compile time of the programs of Stable Diffusion 1, from shapes alone.

A guided walk of 50 steps for one 512x512 image, and the decoder of eight. Times are seconds of CPU,
of all threads of a process, to trace, lower and compile. Bounds: 0.6 and 0.9 GiB of temporaries.
The goals for the walk are 10 s, and 3 s from the cache. A missed goal is printed and is no error,
because times depend on the machine.

    python tests/parity/stable_diffusion_programs.py walk|decode CACHE    # one program
"""

import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import shared
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.generation.walk import sampling_denoiser, sampling_grid
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.pretrained.latent_scheduler import parse_latent_scheduler
from ddpm_jax.samplers import sample_keys

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
}
GIB = 2**30
BOUNDS = {"walk": 0.6, "decode": 0.9}
PROGRAMS = (("walk", "compiled", 10), ("walk", "from the cache", 3), ("decode", "", None))
"""(program, what is shown of it, goal in seconds of CPU or None)."""


def trace_walk():
    """The traced program of 50 guided steps for one image."""
    net = ConditionalUNet()
    scheduler = parse_latent_scheduler(SCHEDULER)
    text = TextCondition(jnp.zeros((1, 77, net.context_dim)))
    xT = jnp.zeros((1, 64, 64, 4))
    grid = sampling_grid(scheduler.objective, scheduler.sampling)

    def run(params, keys, text, empty, scale, xT, grid):
        network = guide(Partial(net.apply, params), text, empty, scale, rescale=0.0)
        denoise = sampling_denoiser(scheduler.objective, network, scheduler.sampling)
        sampler = samplers.make("ddim")
        return samplers.sample(keys, denoise, sampler, grid, xT)

    keys = sample_keys(0, jnp.arange(1))
    return jax.jit(run).trace(net.shapes(), keys, text, text, jnp.float32(7.5), xT, grid)


def trace_decoder():
    """The traced program that decodes eight images."""
    net = Autoencoder()
    return jax.jit(net.decode).trace(net.shapes(), jnp.zeros((8, 64, 64, 4)))


def timed(function):
    """The result of a function, and the seconds of CPU that it takes."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def measure(name: str) -> None:
    """Print the temporaries of a program in GiB, and the seconds to trace, lower and compile it."""
    traced, trace_seconds = timed({"walk": trace_walk, "decode": trace_decoder}[name])
    lowered, lower_seconds = timed(traced.lower)
    compiled, compile_seconds = timed(lowered.compile)
    gib = compiled.memory_analysis().temp_size_in_bytes / GIB
    print(gib, trace_seconds, lower_seconds, compile_seconds)


def describe_goal(seconds: float, goal: float | None) -> str:
    """A sum of seconds beside its goal, as the end of a line; empty without a goal."""
    if goal is None:
        return ""
    return f" = {seconds:.1f} s, goal {goal} s {'reached' if seconds <= goal else 'MISSED'}"


def compare() -> tuple[list[shared.Figure], int]:
    """Print the sizes and times. Return the sizes as figures; nothing else can be wrong."""
    figures = []
    with tempfile.TemporaryDirectory() as cache:
        for name, label, goal in PROGRAMS:
            command = [sys.executable, __file__, name, cache]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            gib, *seconds = map(float, done.stdout.split())
            shown = " + ".join(f"{each:.1f}" for each in seconds)
            against = describe_goal(sum(seconds), goal)
            print(f"{name:7} {label:15} {gib:.2f} GiB of temporaries, {shown} s of CPU{against}")
            figures.append(shared.Figure(f"GiB of temporaries, {name}", gib, BOUNDS[name]))
    return figures, 0


def use_cache(folder: str) -> None:
    """Keep compiled programs in this folder."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    use_cache(sys.argv[2])
    measure(sys.argv[1])
