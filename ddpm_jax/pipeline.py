"""Images in one call, from a model in the diffusers layout or from a spec and its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ddpm_jax.data.pixels import to_image
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check, check_at_least, to_integer
from ddpm_jax.generation.conditions import count_of, read_conditions
from ddpm_jax.generation.generate import generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models import Params
from ddpm_jax.pretrained.latent_scheduler import with_sampler
from ddpm_jax.pretrained.pipeline_folder import load_pretrained, locate_folder, save_pretrained
from ddpm_jax.pretrained.stable_diffusion import (
    StableDiffusion,
    is_text_to_image,
    load_stable_diffusion,
    save_stable_diffusion,
)
from ddpm_jax.settings_json import nearest
from ddpm_jax.text_to_image.draw import draw_images
from ddpm_jax.text_to_image.images import ImageInput
from ddpm_jax.text_to_image.request import Request

MAX_BATCH_SIZE = 64


class PipelineOutput(NamedTuple):
    """The result of calling a `Pipeline`."""

    images: list[Image.Image]
    arrays: np.ndarray
    """The values of the images (n, h, w, c): uint8, or those of the data of a run on arrays."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A model spec and its parameters. A call draws images with `generate_shown`.

    `values` says what numbers the network's outputs stand for, `classes` names the labels, and
    `condition_values` says what the numbers of its conditions stand for.
    """

    spec: ModelSpec
    params: Params
    values: Levels = LEVELS
    classes: tuple[str, ...] | None = None
    condition_values: Levels = LEVELS

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, **options: Any
    ) -> Pipeline | TextToImagePipeline:
        """Load a pipeline from a folder or a hub repository.

        One with a text encoder is a `TextToImagePipeline`. `load_pretrained` and
        `load_stable_diffusion` explain the options and errors.
        """
        if is_text_to_image(locate_folder(path_or_repo, options.get("revision"))):
            return TextToImagePipeline(load_stable_diffusion(path_or_repo, **options))
        pretrained = load_pretrained(path_or_repo, **options)
        return cls(
            pretrained.spec, pretrained.params, pretrained.values, classes=pretrained.classes
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder for `from_pretrained`, as `pipeline_folder.save_pretrained` does."""
        save_pretrained(self.spec, self.params, folder, classes=self.classes, values=self.values)

    def __call__(
        self,
        batch_size: int | None = None,
        seed: int = 0,
        *,
        labels: Sequence[int | str] | np.ndarray | None = None,
        condition: ArrayLike | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> PipelineOutput:
        """Draw `batch_size` images, in batches of at most 64.

        The default is one image, or one for each label or condition. The noise of image i depends
        only on (seed, i). The seed is in [0, 2**32). The images take the labels, which are numbers
        or names of classes, and the rows of `condition`, in the unit of its data, in turn
        (`read_conditions`).
        `sampling` replaces settings of the spec's `Sampling`, such as sampler="unipc", steps=20.
        Another sampler starts from its own default options. Raise ValueError as `generate` and
        `Sampling` do, and for more labels or conditions than images.
        """
        alone = labels is not None and np.ndim(labels) == 0
        check(not alone, f"labels must be a list: write [{labels!r}].")
        spec = dataclasses.replace(self.spec, sampling=self.spec.sampling.override(**sampling))
        conditions = None
        if condition is not None:
            conditions = read_conditions(spec.model, np.asarray(condition), self.condition_values)
        given = {"labels": 0 if labels is None else len(labels), "conditions": count_of(conditions)}
        if batch_size is None:
            batch_size = max(1, *given.values())
        check_at_least(1, batch_size=batch_size)
        for name, number in given.items():
            check(
                number <= batch_size,
                f"batch_size {batch_size} leaves out some of {number} {name}: raise batch_size.",
            )
        states = generate_shown(
            spec,
            self.params,
            num_images=batch_size,
            batch_size=min(batch_size, MAX_BATCH_SIZE),
            seed=seed,
            labels=None if labels is None else self._class_numbers(labels),
            conditions=conditions,
            progress=progress,
            to_values=self.values.to_values,
        )
        pictures = self.values.show(states[0])
        return PipelineOutput([to_image(picture) for picture in pictures], states[0])

    def _class_numbers(self, labels: Sequence[int | str] | np.ndarray) -> list[int]:
        """The numbers of classes, some given by name. Raise ValueError for an unknown name."""
        names = list(self.classes or ())
        for label in labels:
            if isinstance(label, str) and label not in names:
                remedy = nearest(label, names) if names else "give its number"
                raise ValueError(f"{label!r} is no class of this network: {remedy}.")
        return [
            names.index(label) if isinstance(label, str) else to_integer("A label", label)
            for label in labels
        ]


@dataclasses.dataclass(frozen=True)
class TextToImagePipeline:
    """Stable Diffusion. A call draws from prompts, from images, or inside masks."""

    model: StableDiffusion

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder for `from_pretrained`, as `save_stable_diffusion` does."""
        save_stable_diffusion(self.model, folder)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        image: ImageInput | Sequence[ImageInput] | None = None,
        mask: ImageInput | Sequence[ImageInput] | None = None,
        num_images: int = 1,
        strength: float | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        noise: str = "jax",
        clip_skip: int = 0,
        sampler: str | None = None,
        batch_size: int = 1,
        progress: bool = True,
        **sampling: Any,
    ) -> PipelineOutput:
        """Draw `num_images` images per prompt.

        An image is the start of the drawing, and with a mask only the white part is drawn again.
        `text_to_image.request.Request` explains `negative_prompt` to `clip_skip`.
        `sampling` replaces settings of the model's `Sampling`, such as steps=50,
        guidance_scale=7.5. `sampler` names another sampler, which reads the model's scheduler as
        diffusers' own would (`sampling_for`).
        Raise ValueError as `Request`, `draw_images` and `Sampling` do.
        """
        check_at_least(1, batch_size=batch_size)
        request = Request(
            prompts=_listed(prompt),
            negative_prompts=_listed(negative_prompt or ""),
            images=_listed(image),
            masks=_listed(mask),
            num_images=num_images,
            strength=strength,
            height=height,
            width=width,
            seed=seed,
            noise=noise,
            clip_skip=clip_skip,
        )
        images = draw_images(
            self.model,
            request,
            self._sampling_by(sampler).override(**sampling),
            batch_size=batch_size,
            progress=progress,
        )
        return PipelineOutput([to_image(image) for image in images], images)

    def _sampling_by(self, sampler: str | None) -> Sampling:
        """The sampling of the model, by another sampler if one is named."""
        own = self.model.sampling
        if sampler in (None, own.sampler):
            return own
        if not self.model.scheduler:  # a run whose objective diffusers lacks
            return own.override(sampler=sampler)
        return with_sampler(own, self.model.scheduler, sampler)


def _listed(value: Any) -> list:
    """A single text or image as a list of one, and None as an empty list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
