"""Measure how good a network or a set of samples is, as a table and as JSON.

    python -m ddpm_jax.evaluate --ckpt runs/digits --num 10000 --sampler unipc --steps 20
    python -m ddpm_jax.evaluate --ckpt runs/digits --measures bits ode_bits
    python -m ddpm_jax.evaluate --samples samples.npz --against my_images --out x.json
    python -m ddpm_jax.evaluate --compare a.json b.json

With `--out x.json`, x_nearest.png shows the samples nearest to reference images beside these, and
x_bits.png the variational bound over t. docs/evaluation.md says what each number means.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.cli import arguments
from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.cli.run_options import image_config
from ddpm_jax.cli.sampling_arguments import parse_with_sampling
from ddpm_jax.data import DataSource, ImageSet, check_labels
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.loading import InMemory
from ddpm_jax.devices import memory, parallel
from ddpm_jax.errors import check
from ddpm_jax.evaluation import bits_per_dim, image_sets, loss_bands, ode_likelihood
from ddpm_jax.evaluation.features import load_features
from ddpm_jax.evaluation.image_sets import read_reference, read_samples
from ddpm_jax.evaluation.measures import compares_images, measure, over_seeds
from ddpm_jax.evaluation.nearest import Nearest
from ddpm_jax.evaluation.reference import Reference, feature_vectors
from ddpm_jax.evaluation.results import compare, read_result, table
from ddpm_jax.figures import plots
from ddpm_jax.files import atomic_file, check_writable, write_all
from ddpm_jax.generation.generate import chunk_count, generate, generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling, step_count, with_learned_variance
from ddpm_jax.models import Params
from ddpm_jax.runs.sources import MISSING, RunSource, Source, open_checkpoint
from ddpm_jax.settings_json import to_json
from ddpm_jax.version import VERSION

PROG = "python -m ddpm_jax.evaluate"
PICTURES = ("nearest.png", "bits.png")
NUM_SHOWN = 10
"""Samples that are drawn beside their nearest reference images."""

Outputs = dict[str, Callable[[Path], object]]
"""{end of a picture's name: what writes it}."""


def main(args: list[str]) -> None:
    """Run the command with these arguments."""
    ckpt, args = arguments.take_option(args, "--ckpt")
    if ckpt is not None:
        measure_checkpoint(ckpt, args)
        return
    options = arguments.parse(EvaluateOptions, args, None, f"{PROG} --ckpt DIR")
    if options.compare:
        results = {str(path): read_result(path) for path in options.compare}
        print(compare(results, options.may_differ))
        return
    check(options.samples is not None, f"{MISSING[:-1]}, or images by --samples and --against.")
    measure_samples(options)


def measure_samples(options: EvaluateOptions) -> None:
    """Measure the images of `--samples` against those of `--against`."""
    options.check_for_samples()
    check_outputs(options.out)
    samples = read_samples(Path(str(options.samples)))
    if options.num is not None:
        check(
            options.num <= len(samples),
            f"--num {options.num} is more than the {len(samples):,} samples: lower it.",
        )
    images = samples.read(np.arange(options.num or len(samples)))["image"]
    options.set_up_jax(len(images))
    reference_set = read_reference(Path(str(options.against)), images.shape[1:], options.split)
    result = {
        **describe_reference(reference_set, str(options.against), options.split),
        "samples": str(options.samples),
        "sampling": None,
        "seeds": [],
    }
    numbers, outputs = compare_images(options, reference_set, result["against_images"], [images])
    finish(result | numbers, options.out, outputs)


def measure_checkpoint(ckpt: str, args: list[str]) -> None:
    """Measure the network of `--ckpt`, and the samples that it draws."""
    sampler, args = arguments.take_option(args, "--sampler")
    source = open_checkpoint(ckpt)
    if isinstance(source, RunSource):
        image_config(source)
    options, sampling = parse(args, ckpt, source, sampler)
    options.check_for_checkpoint()
    if options.checkpoint is not None:
        source = open_checkpoint(ckpt, options.checkpoint)
    out = options.out or source.output_folder / "evaluation.json"
    check_outputs(out)
    options.set_up_jax(options.num_images)
    spec = dataclasses.replace(source.spec, sampling=sampling)
    reference_set, description, split = reference_of(source, options)
    if options.measures_network:
        options.check_bits_num(len(reference_set))
        check_labels(reference_set, spec.model.num_classes, source.classes)
    params = source.params(options.weights)
    result: dict[str, Any] = {
        **describe_reference(reference_set, description, split),
        "samples": describe_samples(ckpt, source, options, sampling),
        "sampling": sampling_settings(spec),
        "seeds": list(options.sampling_seeds),
    }
    outputs: Outputs = {}
    with options.explain_oom(spec.model):
        if "speed" in options.measures:
            result |= measure_speed(spec, params, options)
        if compares_images(options.measures):
            samples = draw(spec, params, options)
            digest = result["against_images"]
            numbers, outputs = compare_images(options, reference_set, digest, samples)
            result |= numbers
        if options.measures_network:
            numbers, more = measure_network(spec, params, options, reference_set)
            result |= numbers
            outputs |= more
    finish(result, out, outputs)


def parse(
    args: list[str], ckpt: str, source: Source, sampler: str | None
) -> tuple[EvaluateOptions, Sampling]:
    """Parse the options of the command and the settings of sampling, as sample.py does."""
    overrides = {} if sampler is None else {"sampler": sampler}
    default = source.spec.sampling.override(**overrides)
    default = with_learned_variance(source.spec.objective, default)
    return parse_with_sampling(EvaluateOptions, args, default, f"{PROG} --ckpt {ckpt}")


def reference_of(source: Source, options: EvaluateOptions) -> tuple[ImageSet, str, str | None]:
    """The reference images, their description and their split: `--against`, or the run's data.

    Raise ValueError if there are none, and for a split that the data does not have.
    """
    shape = source.spec.model.image_shape
    if options.against is not None:
        images = read_reference(options.against, shape, options.split)
        return images, str(options.against), options.split
    if not isinstance(source, RunSource):
        raise ValueError(
            "This checkpoint does not name its data: give reference images, --against."
        )
    data = with_split(source.config.data, options.split)
    return data.load(shape[0], shape[2]), data.describe(), getattr(data, "split", None)


def with_split(data: DataSource, split: str | None) -> DataSource:
    """The data source with another split. Raise ValueError if the data has no splits."""
    if split is None:
        return data
    check("split" in vars(data), f"The data has no splits ({data.describe()}): leave out --split.")
    change: dict[str, Any] = {"split": split}
    return dataclasses.replace(data, **change)


def describe_reference(images: ImageSet, description: str, split: str | None) -> dict[str, Any]:
    """The part of a result that names the reference images. Their hash tells them from others."""
    return {
        "against": description,
        "against_split": split,
        "against_n": len(images),
        "against_images": image_sets.digest(images),
    }


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


def compare_images(
    options: EvaluateOptions, images: ImageSet, digest: str, samples: Iterable[np.ndarray]
) -> tuple[dict[str, Any], Outputs]:
    """The measures of the sets of `samples`, one per seed, and the picture to draw of the first.

    `images` is the reference, and `digest` its hash.
    """
    measures = options.measures
    per_seed = []
    outputs: Outputs = {}
    with memory.explain_oom(f"batches of {options.batch_size} images", "lower --batch-size"):
        features = load_features(options.features, images)
        reference = Reference(images, features, digest, options.batch_size)
        if "nearest" in measures:
            # Raise an error of the reference before the samples are drawn.
            _ = reference.typical_distance
        for drawn in samples:
            vectors = feature_vectors(features, InMemory(drawn), options.batch_size, "the samples")
            numbers, found = measure(vectors, reference, measures)
            per_seed.append(numbers)
            if found is not None and not outputs:
                outputs["nearest.png"] = partial(draw_nearest, drawn, images, found)
    made_with = {
        "n": len(drawn),
        "features": features.name,
        "features_weights": features.weights,
        "features_resize": features.resize,
        "per_seed": per_seed,
    }
    return over_seeds(per_seed) | made_with, outputs


def draw_nearest(images: np.ndarray, reference: ImageSet, found: Nearest, path: Path) -> None:
    """Write a PNG of the samples that are nearest to a reference image, above these images.

    The number above a column is the distance, relative to that of held-out reference images.
    """
    rows = np.argsort(found.distances, kind="stable")[:NUM_SHOWN]
    originals = reference.read(found.indices[rows])["image"]
    titles = [f"{distance:.2f}" for distance in found.distances[rows]]
    plots.labelled_rows([("samples", images[rows]), ("nearest", originals)], path, titles)


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


def picture_path(out: Path, name: str) -> Path:
    """The path of a picture beside the JSON file, such as x_nearest.png beside x.json."""
    return out.with_name(f"{out.stem}_{name}")


def check_outputs(out: Path | None) -> None:
    """Raise OSError if the JSON and the pictures beside it cannot be written."""
    if out is not None:
        for path in (out, *(picture_path(out, name) for name in PICTURES)):
            check_writable(path)


def finish(result: dict[str, Any], out: Path | None, outputs: Outputs) -> None:
    """Print the table, and write the JSON and the pictures if `out` is given."""
    result |= {"version": VERSION}
    print(table(result))
    if out is None:
        return
    pictures = {picture_path(out, name): write for name, write in outputs.items()}
    for path in write_all({out: partial(write_json, result), **pictures}):
        print(path)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write a result."""
    with atomic_file(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    arguments.run(main)
