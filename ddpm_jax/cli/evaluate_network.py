"""Measure a network: its samples, its likelihood, its loss and its speed."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.cli.evaluate_outputs import Part
from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.batches import batch_at, batch_indices
from ddpm_jax.devices import parallel
from ddpm_jax.evaluation import bits_per_dim, loss_bands, ode_likelihood
from ddpm_jax.evaluation.results import SPEED_RUNS
from ddpm_jax.figures import plots
from ddpm_jax.generation.conditions import blank_conditions, conditions_at, parts_of
from ddpm_jax.generation.generate import chunk_count, generate, generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import step_count
from ddpm_jax.models import Params
from ddpm_jax.runs.provenance import weights_hash
from ddpm_jax.runs.sources import RunSource, Source
from ddpm_jax.settings_json import to_json


def describe_network(
    ckpt: str, source: Source, params: Params, options: EvaluateOptions
) -> dict[str, Any]:
    """The part of a result that names the network. Its hash tells it from others."""
    step = source.step if isinstance(source, RunSource) else None
    at_step = "" if step is None else f", step {step}"
    return {
        "network": f"{ckpt}{at_step}, weights {options.weights}",
        "step": step,
        "weights": options.weights,
        "measured": weights_hash(params)[:16],
    }


def describe_samples(spec: ModelSpec, options: EvaluateOptions) -> dict[str, Any]:
    """The part of a result that says how samples are drawn."""
    sampling = spec.sampling
    steps = step_count(spec.objective, sampling)
    seeds = ", ".join(map(str, options.sampling_seeds))
    guidance = f", guidance {sampling.guidance_scale:g}" if sampling.guided else ""
    labels = ", all classes in turn" if spec.model.num_classes else ""
    conditions = None
    if parts_of(spec.model):
        # `draw` takes them from the images that the samples are compared with.
        conditions = "those of reference images"
        labels = f", conditions: {conditions}"
    return {
        "samples": f"{sampling.sampler} with {steps} steps{guidance}{labels}, seed {seeds}",
        "sampling": sampling_settings(spec),
        "seeds": list(options.sampling_seeds),
        "conditions": conditions,
    }


def sampling_settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of sampling as JSON, with the number of steps that are taken."""
    settings = to_json(spec.sampling)
    return settings | {"steps": step_count(spec.objective, spec.sampling)}


def draw(
    spec: ModelSpec, params: Params, options: EvaluateOptions, images: ImageSet
) -> Iterator[np.ndarray]:
    """Yield the uint8 samples of each seed. It also draws the images whose conditions they have."""
    for seed in options.sampling_seeds:
        indices = batch_indices(seed, 0, options.num_images, len(images))
        shown = generate_shown(
            spec,
            params,
            num_images=options.num_images,
            batch_size=options.batch_size,
            seed=seed,
            **conditions_at(spec.model, images, indices),
        )
        yield shown[-1]


def measure_speed(spec: ModelSpec, params: Params, options: EvaluateOptions) -> dict[str, Any]:
    """Images drawn per second in full batches, after one batch that compiles the program."""
    size = parallel.padded_batch_size(options.batch_size, options.batch_size)
    conditions = blank_conditions(spec.model)
    run = partial(
        generate,
        spec,
        params,
        num_images=size,
        batch_size=size,
        seed=0,
        conditions=conditions,
    )
    run()
    speeds = [size / _seconds(run) for _ in range(SPEED_RUNS)]
    return {
        "images_per_second": float(np.mean(speeds)),
        "images_per_second_spread": float(np.std(speeds, ddof=1)),
        "batch_size": size,
        "device": parallel.describe_devices(),
        "sampling": sampling_settings(spec),
    }


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_network(
    spec: ModelSpec, params: Params, options: EvaluateOptions, images: ImageSet
) -> Iterator[Part]:
    """Yield the bits per dimension and the loss of `--bits-num` images, each with its plots.

    No image is drawn twice, and the seed decides which are drawn.
    """
    batch = batch_at(images, options.seed, 0, options.bits_num)
    made_with = {"bits_num": options.bits_num, "bits_seed": options.seed}
    for name, measure in OF_NETWORKS.items():
        if name in options.measures:
            numbers, plots_of_it = measure(spec, params, batch, options)
            yield numbers | made_with, plots_of_it


def measure_bits(spec: ModelSpec, params: Params, batch: Batch, options: EvaluateOptions) -> Part:
    """The variational bound, and the plot of its terms."""
    parts = chunk_count(spec.objective.timesteps, bits_per_dim.PROGRESS_PARTS)
    with _bar(options, parts, "part", "Variational bound") as bar:
        bound = bits_per_dim.evaluate(
            spec,
            params,
            batch,
            options.batch_size,
            options.seed,
            variance=options.variance,
            on_part=bar.update,
        )
    numbers = bits_per_dim.summary(bound)
    variance = {"variance": options.variance or spec.objective.variance}
    return numbers | variance, {"bits.png": partial(draw_bound, numbers)}


def measure_loss(spec: ModelSpec, params: Params, batch: Batch, options: EvaluateOptions) -> Part:
    """The loss by band of t."""
    with _bar(options, loss_bands.BANDS, "band", "Loss") as bar:
        losses = loss_bands.band_losses(
            spec, params, batch, options.batch_size, options.seed, on_part=bar.update
        )
    numbers = loss_bands.summary(losses, spec.objective.timesteps)
    return numbers | {"objective": to_json(spec.objective)}, {}


def measure_ode_bits(
    spec: ModelSpec, params: Params, batch: Batch, options: EvaluateOptions
) -> Part:
    """The likelihood of the probability-flow ODE."""
    steps = ode_likelihood.STEPS
    with _bar(options, steps, "step", "Likelihood by the ODE") as bar:
        bits = ode_likelihood.ode_bits(
            spec,
            params,
            batch,
            options.batch_size,
            options.seed,
            variance=options.variance,
            steps=steps,
            on_step=bar.update,
        )
    numbers = {
        "ode_bits_per_dim": bits.mean,
        "ode_bits_per_dim_error": bits.error,
        "ode_trace_error": bits.trace_error,
        "ode_steps": steps,
        "variance": options.variance or spec.objective.variance,
    }
    return numbers, {}


OF_NETWORKS = {"bits": measure_bits, "loss": measure_loss, "ode_bits": measure_ode_bits}
"""{measure of `--bits-num` images: the function that measures a network}."""


def _bar(options: EvaluateOptions, parts: int, unit: str, title: str) -> tqdm:
    """A progress bar of the parts of all batches."""
    batch_size = parallel.padded_batch_size(options.batch_size, options.bits_num)
    num_batches = -(-options.bits_num // batch_size)
    return tqdm(total=num_batches * parts, unit=unit, desc=title)


def draw_bound(numbers: dict[str, Any], path: Path) -> None:
    """Write a PNG of the terms of the variational bound."""
    title = f"{numbers['bits_per_dim']:.3f} bits per dimension"
    plots.bound_curve(numbers["bound"]["per_timestep"], path, title)
