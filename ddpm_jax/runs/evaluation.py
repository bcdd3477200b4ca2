"""Compare samples with training images while a network is trained."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data import ImageSet
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.evaluation.features import Features, load_features
from ddpm_jax.evaluation.frechet import frechet_distance, moments
from ddpm_jax.evaluation.kid import kernel_distance
from ddpm_jax.evaluation.reference import feature_vectors
from ddpm_jax.generation.generate import generate
from ddpm_jax.models import Params
from ddpm_jax.runs.grids import shortened
from ddpm_jax.settings_json import to_json


class Distances(NamedTuple):
    """Distances of samples to training images; lower is better. KID decides which step is best."""

    kid: float
    kid_error: float
    frechet: float


class Evaluator:
    """Draws samples of a run, always from the same noise, and measures them.

    The features and the training images are read at the first evaluation.
    """

    def __init__(self, config: Config, images: ImageSet):
        self._config = config
        self._images = images

    def is_due(self, step: int, total: int) -> bool:
        """Whether to measure this step of `total`. The last one always is, if any is."""
        every = self._config.evaluation.every
        return every is not None and (step % every == 0 or step == total)

    @functools.cached_property
    def _features(self) -> Features:
        return load_features(self._config.evaluation.features, self._images)

    @functools.cached_property
    def _reference(self) -> np.ndarray:
        """The features of training images, which the run's seed draws without repetition."""
        count = min(self._config.evaluation.num, len(self._images))
        batch = batch_at(self._images, self._config.training.seed, 0, count)
        return self._vectors(to_uint8(batch["image"]))

    def _vectors(self, images: np.ndarray) -> np.ndarray:
        batch_size = self._config.training.micro_batch_size
        return feature_vectors(self._features, InMemory(images), batch_size)

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
        )
        vectors = self._vectors(states[-1])
        kid = kernel_distance(vectors, self._reference)
        distance = frechet_distance(moments(self._reference), moments(vectors))
        return Distances(kid.value, kid.error, distance)

    def record(self, result: Distances) -> dict[str, Any]:
        """The part of a checkpoint's record: the numbers, and how they were made."""
        settings = self._config.evaluation
        made_with = {
            "num": settings.num,
            "features": settings.features,
            "weights": self._features.weights,
            "sampling": to_json(shortened(self._config)),
        }
        return {**result._asdict(), "made_with": made_with}
