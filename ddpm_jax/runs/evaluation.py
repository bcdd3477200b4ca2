"""Compare samples with training images while a network is trained."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import Config, RunConfig
from ddpm_jax.data import ImageSet
from ddpm_jax.data.batches import batch_at, batch_indices
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.devices import hosts
from ddpm_jax.evaluation.features import Features, load_features
from ddpm_jax.evaluation.measures import Measure, check_count, measure, prepare
from ddpm_jax.evaluation.reference import Reference, feature_vectors
from ddpm_jax.generation.conditions import conditions_at, parts_of
from ddpm_jax.generation.generate import generate
from ddpm_jax.models import Params
from ddpm_jax.runs.grids import shortened
from ddpm_jax.settings_json import to_json

MEASURES: tuple[Measure, ...] = ("kid", "frechet")


class Distances(NamedTuple):
    """Distances of samples to training images; lower is better. KID decides which step is best."""

    kid: float
    kid_error: float
    frechet: float


class Evaluator:
    """Draws samples of a run, always from the same noise, and measures them."""

    def __init__(self, config: Config, images: ImageSet):
        self._config = config
        self._images = images

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure this step of `total`. The last one always is."""
        every = self._config.evaluation.every
        return step == total or (every is not None and step % every == 0)

    def prepare(self) -> None:
        """Load the features and the training images.

        Call this before training, because the weights may be missing or the images too few.
        """
        check_count(len(self._images), "training images")
        prepare(self._reference, MEASURES)

    @functools.cached_property
    def _features(self) -> Features:
        return load_features(self._config.evaluation.features, self._images)

    @functools.cached_property
    def _reference(self) -> Reference:
        """The features of training images, which the run's seed draws without repetition."""
        count = min(self._config.evaluation.num, len(self._images))
        batch = batch_at(self._images, self._config.training.seed, 0, count)
        images = InMemory(to_uint8(batch["image"]))
        return Reference(feature_vectors(self._features, images, "training images"))

    @property
    def _indices(self) -> np.ndarray:
        """The training images whose conditions the samples have: the batch after the reference."""
        config = self._config
        return batch_indices(config.training.seed, 1, config.evaluation.num, len(self._images))

    @property
    def _conditions(self) -> str | None:
        """Which images give the conditions; None for a network without any but labels."""
        if not parts_of(self._config.model):
            return None
        others = len(self._images) >= 2 * self._config.evaluation.num
        return "those of other images" if others else "those of reference images too"

    def __call__(self, params: Params) -> Distances:
        """Measure the samples of a network."""
        config = self._config
        states = generate(
            config,
            params,
            num_images=config.evaluation.num,
            batch_size=config.training.micro_batch_size,
            seed=config.training.seed,
            sampling=shortened(config),
            **conditions_at(config.model, self._images, self._indices),
        )
        vectors = feature_vectors(self._features, InMemory(states[-1]), "samples")
        numbers, _ = measure(vectors, self._reference, MEASURES)
        return Distances(**numbers)

    def record(self, result: Distances) -> dict[str, Any]:
        """The part of a checkpoint's record: the numbers, and how they were made."""
        settings = self._config.evaluation
        made_with = {
            "num": settings.num,
            "images": len(self._reference.vectors),
            "features": settings.features,
            "weights": self._features.weights,
            "sampling": to_json(shortened(self._config)),
        }
        if self._conditions is not None:
            made_with["conditions"] = self._conditions
        return {**result._asdict(), "made_with": made_with}


def prepared_evaluator(config: RunConfig, images: ImageSet) -> Evaluator | None:
    """The evaluator of a run that measures its samples; None for another run.

    Only the primary host measures. Raise ValueError, OSError or ImportError for what it lacks.
    """
    if not isinstance(config, Config) or config.evaluation.every is None:
        return None
    evaluator = Evaluator(config, images)
    if hosts.is_primary():
        evaluator.prepare()
    return evaluator
