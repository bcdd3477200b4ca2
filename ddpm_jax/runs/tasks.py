"""One `Task` for each class of config: all that such runs do in their own way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import Config, RunConfig
from ddpm_jax.data import ImageSet, check_labels
from ddpm_jax.data.values import LEVELS, Scales
from ddpm_jax.errors import check
from ddpm_jax.evaluation.features import check_features
from ddpm_jax.generation.conditions import check_given_size
from ddpm_jax.generation.sampling import build_sampler
from ddpm_jax.latent_config import AutoencoderConfig, LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.runs import grids, saved_steps
from ddpm_jax.runs.latents import load_latents
from ddpm_jax.runs.sources import check_same_network, open_checkpoint
from ddpm_jax.text_to_image.learn_tokenizer import learn_tokenizer
from ddpm_jax.text_to_image.tokenizer import make_tokenizer
from ddpm_jax.training.autoencoder_loss import autoencoder_loss
from ddpm_jax.training.step import Loss, model_loss


class Task(NamedTuple):
    """The loss that a run trains by, and the images that it shows."""

    check: Callable[[Any], None]
    """(config): raise if a file or a library is missing that the run needs later."""
    prepare: Callable[[Any, Path, int, ImageSet], ImageSet]
    """(config, folder, step, images) -> what the steps after this one are trained on."""
    loss: Callable[[Any], Loss]
    """(config) -> the loss of its network."""
    grid: Callable[[Any, Params, Any], np.ndarray]
    """(config, params, images) -> the uint8 images of a grid of samples."""
    preview: Callable[[Any, Any, Path], None]
    """(config, images, folder): write figures of the data and of the noising process."""
    predictions: Callable[[Any, Params, Any], list[tuple[str, np.ndarray]]] | None
    """(config, params, images) -> rows that show what the network predicts; None for no rows."""


def task_of(config: RunConfig) -> Task:
    """The task of a run, by its config's class or the nearest class that it inherits from."""
    return next(TASKS[kind] for kind in type(config).__mro__ if kind in TASKS)


def _denoising_loss(config: Config) -> Loss:
    return model_loss(config.model, config.objective, config.training.dtype)


def _autoencoder_loss(config: AutoencoderConfig) -> Loss:
    return autoencoder_loss(config.model, config.training.dtype)


def _check_sampler(config: Config) -> None:
    # A file that the sampler reads may be missing: raise now, not at the first sample grid.
    build_sampler(config.objective, config.sampling)


def _check_parts(config: Config) -> None:
    _check_sampler(config)
    # Raise now, not at the first evaluation.
    check_features(config.evaluation.features)


def _check_text(config: LatentConfig) -> None:
    _check_sampler(config)
    if config.training.init_from is not None:
        # Raise now, not after the images are encoded.
        check_same_network(config, open_checkpoint(config.training.init_from))
    # The tokenizer of the captions needs the same library, and has the same settings.
    make_tokenizer(learn_tokenizer((), config.model.vocab_size, config.model.max_length))


def saved_scales(config: RunConfig, folder: Path, step: int) -> Scales:
    """The scales of the network at a saved step, or of the one that a new run starts from.

    A new run scales its images by statistics of their own, and only conditions as before.
    """
    if step:
        record = saved_steps.data_at(folder, step)
        names = ("values", "condition_values")
        return Scales(*(saved_steps.values_of(record, name) for name in names))
    if config.data.condition is None or config.training.init_from is None:
        return Scales()
    return Scales(condition_values=open_checkpoint(config.training.init_from).condition_values)


def _with_valid_conditions(config: Config, folder: Path, step: int, images: ImageSet) -> ImageSet:
    check_labels(images, config.model.num_classes)
    check_given_size(config.model, images)
    check(
        images.values == LEVELS or config.evaluation.every is None,
        "Samples are compared with training images of 8 bits alone: leave out --evaluation.every.",
    )
    return images


TASKS: dict[type[RunConfig], Task] = {
    Config: Task(
        check=_check_parts,
        prepare=_with_valid_conditions,
        loss=_denoising_loss,
        grid=grids.samples,
        preview=grids.preview_noising,
        predictions=grids.prediction_rows,
    ),
    AutoencoderConfig: Task(
        check=lambda config: None,
        prepare=lambda config, folder, step, images: images,
        loss=_autoencoder_loss,
        grid=grids.reconstructions,
        preview=grids.preview_data,
        predictions=None,
    ),
    LatentConfig: Task(
        check=_check_text,
        prepare=load_latents,
        loss=_denoising_loss,
        grid=grids.drawn_captions,
        # The run of the autoencoder has shown the images.
        preview=lambda config, latents, folder: None,
        predictions=None,
    ),
}
"""{kind of config: its task}."""
