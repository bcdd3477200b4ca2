"""Images in one call, from a model in the diffusers layout or from a spec and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddpm_jax.data.pixels import to_image
from ddpm_jax.errors import check_at_least
from ddpm_jax.generation.generate import generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params
from ddpm_jax.pretrained.pipeline_folder import load_pretrained, save_pretrained

MAX_BATCH_SIZE = 64


class PipelineOutput(NamedTuple):
    """The result of calling a `Pipeline`."""

    images: list[Image.Image]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A model spec and its parameters. A call draws images with `generate_shown`."""

    spec: ModelSpec
    params: Params

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, **options) -> Pipeline:
        """Load a pipeline from a folder or a hub repository.

        `load_pretrained` explains the options and errors.
        """
        pretrained = load_pretrained(path_or_repo, **options)
        return cls(pretrained.spec, pretrained.params)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder for `from_pretrained`, as `pipeline_folder.save_pretrained` does."""
        save_pretrained(self.spec, self.params, folder)

    def __call__(
        self,
        batch_size: int = 1,
        seed: int = 0,
        *,
        labels: Sequence[int] | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> PipelineOutput:
        """Draw `batch_size` images, in batches of at most 64.

        The noise of image i depends only on (seed, i). The seed is in [0, 2**32).
        `sampling` replaces settings of the spec's `Sampling`, such as sampler="unipc", steps=20.
        Another sampler starts from its own default options. Raise ValueError as `generate` and
        `Sampling` do.
        """
        check_at_least(1, batch_size=batch_size)
        spec = dataclasses.replace(self.spec, sampling=self.spec.sampling.override(**sampling))
        states = generate_shown(
            spec,
            self.params,
            num_images=batch_size,
            batch_size=min(batch_size, MAX_BATCH_SIZE),
            seed=seed,
            labels=labels,
            progress=progress,
        )
        return PipelineOutput([to_image(image) for image in states[0]])
