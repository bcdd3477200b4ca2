"""Pictures in one call, from a model in the diffusers layout or from any recipe with its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddpm_jax.data.pixels import to_image
from ddpm_jax.generation.generate import generate_shown
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.models import Params
from ddpm_jax.pretrained.pipeline_folder import load_pretrained, save_pretrained

MAX_BATCH_SIZE = 64


class PipelineOutput(NamedTuple):
    """What a call returns."""

    images: list[Image.Image]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A recipe and its parameters, to be called for pictures: a shell around `generate_shown`."""

    recipe: Recipe
    params: Params

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, **options) -> Pipeline:
        """That of a folder or a repository of the hub; options and errors as of `load_pretrained`."""
        found = load_pretrained(path_or_repo, **options)
        return cls(found.recipe, found.params)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the folder that `from_pretrained` reads, as `pipeline_folder.save_pretrained` does."""
        save_pretrained(self.recipe, self.params, folder)

    def __call__(
        self,
        batch_size: int = 1,
        seed: int = 0,
        *,
        labels: Sequence[int] | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> PipelineOutput:
        """`batch_size` pictures; picture i depends on (seed, i) alone.

        `sampling` are settings of `Sampling` in place of the recipe's, such as sampler="unipc", steps=20; another
        sampler has its own options by default. Raises ValueError as `generate` and `Sampling` do.
        """
        recipe = dataclasses.replace(
            self.recipe, sampling=self.recipe.sampling.override(**sampling)
        )
        drawn = generate_shown(
            recipe,
            self.params,
            num=batch_size,
            batch_size=min(batch_size, MAX_BATCH_SIZE),
            seed=seed,
            labels=labels,
            progress=progress,
        )
        return PipelineOutput([to_image(picture) for picture in drawn[0]])
