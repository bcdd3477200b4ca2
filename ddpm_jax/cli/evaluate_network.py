"""Measure a network: its samples, its likelihood, its loss and its speed."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.cli.evaluate_outputs import Outputs
from ddpm_jax.data import ImageSet
from ddpm_jax.data.batches import batch_at
from ddpm_jax.devices import parallel
from ddpm_jax.evaluation import bits_per_dim, loss_bands, ode_likelihood
from ddpm_jax.figures import plots
from ddpm_jax.generation.generate import chunk_count, generate, generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling, step_count
from ddpm_jax.models import Params
from ddpm_jax.runs.sources import RunSource, Source
from ddpm_jax.settings_json import to_json


def sampling_settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of sampling as JSON, with the number of steps that are taken."""
    settings = to_json(spec.sampling)
    return settings | {"steps": step_count(spec.objective, spec.sampling)}


def describe_samples(
    ckpt: str, source: Source, options: EvaluateOptions, sampling: Sampling
) -> str:
    """One line that says which network drew the samples and how."""
    step = f", step {source.step}" if isinstance(source, RunSource) else ""
    steps = step_count(source.spec.objective, sampling)
    seeds = ", ".join(map(str, options.sampling_seeds))
    guidance = f", guidance {sampling.guidance_scale:g}" if sampling.guided else ""
    network = f"{ckpt}{step}, weights {options.weights}"
    return f"{network}, {sampling.sampler} with {steps} steps{guidance}, seed {seeds}"


def draw(spec: ModelSpec, params: Params, options: EvaluateOptions) -> Iterator[np.ndarray]:
    """Yield the uint8 samples of each seed."""
    for seed in options.sampling_seeds:
        shown = generate_shown(
            spec,
            params,
            num_images=options.num_images,
            batch_size=options.batch_size,
            seed=seed,
        )
        yield shown[-1]


def measure_speed(spec: ModelSpec, params: Params, options: EvaluateOptions) -> dict[str, Any]:
    """Images drawn per second in full batches, after one batch that compiles the program."""
    size = options.batch_size
    run = partial(generate, spec, params, num_images=size, batch_size=size, seed=0)
    run()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    device = parallel.describe_devices()
    return {"images_per_second": size / seconds, "batch_size": size, "device": device}


def measure_network(
    spec: ModelSpec, params: Params, options: EvaluateOptions, images: ImageSet
) -> tuple[dict[str, Any], Outputs]:
    """The bits per dimension and the loss of `--bits-num` images, and the plot of the bound.

    No image is drawn twice, and the seed decides which are drawn.
    """
    batch = batch_at(images, options.seed, 0, options.bits_num)
    variance = options.variance
    size = (batch, options.batch_size, options.seed, variance)
    num_batches = -(-options.bits_num // options.batch_size)
    result: dict[str, Any] = {
        "bits_num": options.bits_num,
        "variance": variance or spec.objective.variance,
    }
    outputs: Outputs = {}
    if "bits" in options.measures:
        parts = chunk_count(spec.objective.timesteps, bits_per_dim.PROGRESS_PARTS)
        with tqdm(total=num_batches * parts, unit="part", desc="Variational bound") as bar:
            bound = bits_per_dim.evaluate(spec, params, *size, bar.update)
        numbers = bits_per_dim.summary(bound)
        result |= numbers
        outputs["bits.png"] = partial(draw_bound, numbers)
    if "loss" in options.measures:
        with tqdm(total=num_batches * loss_bands.BANDS, unit="band", desc="Loss") as bar:
            losses = loss_bands.band_losses(spec, params, *size[:3], bar.update)
        result |= loss_bands.summary(losses)
    if "ode_bits" in options.measures:
        steps = ode_likelihood.STEPS
        with tqdm(total=num_batches * steps, unit="step", desc="Likelihood by the ODE") as bar:
            bits = ode_likelihood.ode_bits(spec, params, *size, steps, bar.update)
        result |= {
            "ode_bits_per_dim": bits.mean,
            "ode_bits_per_dim_error": bits.error,
            "ode_trace_error": bits.trace_error,
            "ode_steps": steps,
        }
    return result, outputs


def draw_bound(numbers: dict[str, Any], path: Path) -> None:
    """Write a PNG of the terms of the variational bound."""
    title = f"{numbers['bits_per_dim']:.3f} bits per dimension"
    plots.bound_curve(numbers["bound"]["per_timestep"], path, title)
