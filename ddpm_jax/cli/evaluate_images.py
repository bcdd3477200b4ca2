"""Compare samples with reference images."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.cli.evaluate_outputs import Outputs, check_outputs, finish
from ddpm_jax.data import ImageSet
from ddpm_jax.data.loading import InMemory
from ddpm_jax.devices import memory
from ddpm_jax.errors import check
from ddpm_jax.evaluation import image_sets
from ddpm_jax.evaluation.features import load_features
from ddpm_jax.evaluation.image_sets import read_reference, read_samples
from ddpm_jax.evaluation.measures import measure, over_seeds
from ddpm_jax.evaluation.nearest import Nearest
from ddpm_jax.evaluation.reference import Reference, feature_vectors
from ddpm_jax.figures import plots

NUM_SHOWN = 10
"""Samples that are drawn beside their nearest reference images."""


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


def describe_reference(images: ImageSet, description: str, split: str | None) -> dict[str, Any]:
    """The part of a result that names the reference images. Their hash tells them from others."""
    return {
        "against": description,
        "against_split": split,
        "against_n": len(images),
        "against_images": image_sets.digest(images),
    }


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
