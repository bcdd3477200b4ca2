"""Compare samples with reference images."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.cli.evaluate_options import EvaluateOptions
from ddpm_jax.cli.evaluate_outputs import Outputs, Part, check_outputs, report
from ddpm_jax.data import ImageSet
from ddpm_jax.data.loading import InMemory
from ddpm_jax.devices import memory
from ddpm_jax.errors import check
from ddpm_jax.evaluation import image_sets
from ddpm_jax.evaluation.features import Features, load_features
from ddpm_jax.evaluation.image_sets import read_reference, read_samples
from ddpm_jax.evaluation.measures import check_count, measure, over_seeds, prepare
from ddpm_jax.evaluation.nearest import Nearest
from ddpm_jax.evaluation.reference import Reference, cached_vectors, feature_vectors
from ddpm_jax.figures import plots

NUM_SHOWN = 10
"""Samples that are drawn next to their nearest reference images."""
OUT_OF_MEMORY = "the images and their features", "lower --num, or give a smaller reference"


def measure_samples(options: EvaluateOptions) -> None:
    """Measure the images of `--samples` against those of `--against`."""
    options.check_for_samples()
    check_outputs(options.out)
    with memory.explain_oom(*OUT_OF_MEMORY):
        images = choose_samples(read_samples(Path(str(options.samples))), options.num)
        options.set_up_jax(len(images))
        reference_set = read_reference(Path(str(options.against)), images.shape[1:], options.split)
        result = {
            **describe_reference(reference_set, str(options.against), options.split),
            "samples": str(options.samples),
            "measured": image_sets.digest(InMemory(images)),
            "sampling": None,
            "seeds": [],
        }
        reference = prepare_reference(options, reference_set, result["against_images"])
        report(result, [compare_images(options, *reference, reference_set, [images])], options.out)


def choose_samples(samples: ImageSet, num: int | None) -> np.ndarray:
    """Read all samples, or `num` of them at random, always the same ones.

    The first ones may all be of one class. Raise ValueError if there are too few.
    """
    total = len(samples)
    check_count(total, "samples")
    if num is None:
        return samples.read(np.arange(total))["image"]
    check(num <= total, f"--num {num} is more than the {total:,} samples: lower it.")
    return samples.read(np.sort(np.random.RandomState(0).permutation(total)[:num]))["image"]


def describe_reference(images: ImageSet, description: str, split: str | None) -> dict[str, Any]:
    """The part of a result that names the reference images. Their hash tells them from others."""
    return {
        "against": description,
        "against_split": split,
        "against_n": len(images),
        "against_images": image_sets.digest(images),
    }


def prepare_reference(
    options: EvaluateOptions, images: ImageSet, digest: str
) -> tuple[Features, Reference]:
    """The features, and what the measures need of the reference `images`, whose hash is `digest`.

    All errors of a reference are raised here, before any sample is drawn.
    """
    check_count(len(images), "reference images")
    with memory.explain_oom(*OUT_OF_MEMORY):
        features = load_features(options.features, images)
        reference = Reference(cached_vectors(features, images, digest))
        prepare(reference, options.measures)
    return features, reference


def compare_images(
    options: EvaluateOptions,
    features: Features,
    reference: Reference,
    images: ImageSet,
    samples: Iterable[np.ndarray],
) -> Part:
    """The measures of the sets of `samples`, one per seed, and the picture to draw of the first.

    `images` are those of the reference.
    """
    per_seed = []
    outputs: Outputs = {}
    for drawn in samples:
        with memory.explain_oom(*OUT_OF_MEMORY):
            vectors = feature_vectors(features, InMemory(drawn), "the samples")
            numbers, found = measure(vectors, reference, options.measures)
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
