"""The latents and token ids that a latent run trains on, and the files it keeps of them.

`autoencoder/` is the run of the autoencoder, `tokenizer/` holds the tokenizer's files, and
`latents.npz` the latents of all images. A run that starts from another run or from a folder of
Stable Diffusion uses the autoencoder and the tokenizer there.
"""

import dataclasses
import functools
import hashlib
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import posterior_sample
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.pretrained.hub import TOKENIZER_FILES
from ddpm_jax.pretrained.part_folder import read_part_params
from ddpm_jax.pretrained.pipeline_folder import locate_folder
from ddpm_jax.pretrained.stable_diffusion import (
    is_text_to_image,
    read_tokenizer_files,
    read_without_weights,
)
from ddpm_jax.runs import saved_steps
from ddpm_jax.runs.directory import AUTOENCODER, LATENTS, TOKENIZER
from ddpm_jax.runs.provenance import check_trained_with, is_trained_with, weights_hash
from ddpm_jax.runs.sources import RunSource, open_checkpoint, open_run
from ddpm_jax.runs.text_folder import read_text_spec
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS
from ddpm_jax.text_to_image.learn_tokenizer import learn_tokenizer
from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize

BATCH = 64
PIXELS_PER_BATCH = 2**18
"""Limit of pixels per encoded batch. A larger image is a batch of its own."""


class TrainedAutoencoder(NamedTuple):
    """The autoencoder of a run or of Stable Diffusion, with its parameters and their hash."""

    folder: Path
    model: ImageAutoencoder
    params: Params
    hash: str
    scaling_factor: float | None = None
    """Stable Diffusion's own factor of the latents; None for the autoencoder of a run."""


class Latents(NamedTuple):
    """An `ImageSet` of scaled latents (n, h, w, c) float32 with token ids (n, length)."""

    means: Float[np.ndarray, "n h w c"]
    """The means of the latents of the images, not scaled."""
    labels: Int[np.ndarray, "n length"]
    scaling_factor: float
    captions: tuple[str, ...]
    autoencoder: TrainedAutoencoder
    tokenizer_files: dict[str, bytes]
    made_of: str
    """The hashes of the autoencoder and of the images."""
    classes: tuple[str, ...] | None = None

    @property
    def values(self) -> Levels:
        """Those of the images."""
        return LEVELS

    def __len__(self) -> int:
        return len(self.means)

    def read(self, indices: np.ndarray) -> Batch:
        scaled = np.float32(self.scaling_factor) * self.means[indices]
        return {"image": scaled, "label": self.labels[indices]}


def owner_of(config: LatentConfig, workdir: Path) -> Path:
    """The directory of the run, or the folder, that holds a run's autoencoder and tokenizer.

    A run with `init_from` shares those of the run or the folder that it started from.
    """
    if config.trains_autoencoder:
        return workdir
    init_from = str(config.training.init_from)
    source = open_checkpoint(init_from)
    if not isinstance(source, RunSource):
        return locate_folder(init_from, weights=True)
    assert isinstance(source.config, LatentConfig)
    return owner_of(source.config, source.folder)


def load_latents(config: LatentConfig, workdir: Path, step: int, images: ImageSet) -> Latents:
    """The latents of the images of a run that goes on from `step`, and the ids of their captions.

    All hosts must call this together. Raise FileNotFoundError if the autoencoder is not trained or
    the tokenizer is lost, and ValueError if the autoencoder is not the one of the steps so far.
    """
    owner = owner_of(config, workdir)
    autoencoder = load_autoencoder(owner)
    model = config.autoencoder.model
    # The autoencoder encodes any size, so that of the images may differ.
    check(
        dataclasses.replace(autoencoder.model, image_size=model.image_size) == model,
        f"The settings autoencoder.model are not those of {autoencoder.folder}: leave them out, "
        "except the size of images.",
    )
    captions = images.captions
    assert captions is not None, "LatentConfig needs a source of captions."
    files = tokenizer_for(config, workdir, step, captions)
    with warnings.catch_warnings():
        # A caption that is cut is still a caption.
        warnings.simplefilter("ignore")
        ids = tokenize(make_tokenizer(files), captions)
    _check_tokens(config.model, ids)
    made_of = f"{autoencoder.hash} {images_hash(images)}"
    means = _read(workdir / LATENTS, made_of)
    if means is None:
        means = encode_means(model, autoencoder.params, images)
    scale = scaling_factor(config, workdir, step, autoencoder, means)
    return Latents(means, ids, scale, captions, autoencoder, files, made_of)


def _check_tokens(model: TextUNet, ids: Int[np.ndarray, "n length"]) -> None:
    """Raise ValueError unless the text encoder takes these ids, as with a tokenizer not its own."""
    length = ids.shape[1]
    highest = int(np.max(ids))
    check(
        length == model.max_length and highest < model.vocab_size,
        f"The tokenizer gives {length} tokens up to {highest}, but the text encoder takes "
        f"{model.max_length} tokens below {model.vocab_size}: take both from one model.",
    )


def save_latents(config: LatentConfig, workdir: Path, latents: Latents) -> None:
    """Write the file of latents and the tokenizer to a run's directory, unless they are there."""
    if config.trains_autoencoder and tokenizer_files(workdir) != latents.tokenizer_files:
        for name, content in latents.tokenizer_files.items():
            with atomic_file(workdir / TOKENIZER / name) as file:
                file.write(content)
    if _read(workdir / LATENTS, latents.made_of) is None:
        with atomic_file(workdir / LATENTS) as file:
            np.savez(file, latents=latents.means, made_of=latents.made_of)


def load_autoencoder(owner: Path) -> TrainedAutoencoder:
    """The autoencoder of the run or the folder that owns it. All hosts must call this together."""
    if is_text_to_image(owner):
        return _pretrained_autoencoder(owner)
    source = open_run(str(owner / AUTOENCODER))
    model = source.config.model
    assert isinstance(model, ImageAutoencoder)
    params = source.params(DEFAULT_WEIGHTS)
    return TrainedAutoencoder(source.folder, model, params, weights_hash(params))


def _pretrained_autoencoder(folder: Path) -> TrainedAutoencoder:
    net = read_without_weights(folder).autoencoder
    params = read_part_params(folder / "vae", "vae", net)
    model = read_text_spec(folder).image_autoencoder
    return TrainedAutoencoder(folder, model, params, weights_hash(params), net.scaling_factor)


def check_not_trained_further(workdir: Path, step: int) -> None:
    """Raise ValueError if the network at `step` was trained on the autoencoder as it is now.

    The latents would change. An autoencoder that lost its last steps may train them again.
    """
    folder = workdir / AUTOENCODER
    if not saved_steps.newest(folder):
        return
    autoencoder = load_autoencoder(workdir)
    check(
        not is_trained_with(workdir, step, AUTOENCODER, autoencoder.hash),
        f"The network in {workdir} was trained on the autoencoder as it is: leave "
        "--autoencoder.training.steps and epochs and the number of images as they were, or start "
        "afresh with --overwrite.",
    )


def tokenizer_for(
    config: LatentConfig, workdir: Path, step: int, captions: tuple[str, ...]
) -> dict[str, bytes]:
    """The files of the tokenizer by name, which a new run learns from its captions."""
    if config.trains_autoencoder and not step:
        return learn_tokenizer(captions, config.model.vocab_size, config.model.max_length)
    return read_tokenizer(owner_of(config, workdir))


def read_tokenizer(owner: Path) -> dict[str, bytes]:
    """The files of the tokenizer that a run or a folder owns, by name.

    Raise FileNotFoundError if those of a run are lost.
    """
    if is_text_to_image(owner):
        return read_tokenizer_files(owner / "tokenizer")
    files = tokenizer_files(owner)
    if not files:
        raise FileNotFoundError(
            f"There is no tokenizer in {owner / TOKENIZER}: restore it, or start the run afresh "
            "with --overwrite."
        )
    return files


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of the tokenizer of a run by name, none if there are none yet."""
    paths = {name: folder / TOKENIZER / name for name in TOKENIZER_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def scaling_factor(
    config: LatentConfig,
    workdir: Path,
    step: int,
    autoencoder: TrainedAutoencoder,
    means: Float[np.ndarray, "n h w c"],
) -> float:
    """The factor of the latents of a run that goes on from `step`.

    Later steps use the saved one. A new run takes that of `init_from`, or else 1 / std of all
    means. Raise ValueError if saved steps were trained on another autoencoder.
    """
    folder = workdir
    if not step and config.trains_autoencoder:
        return float(1 / np.std(means))
    if not step:
        source = open_checkpoint(str(config.training.init_from))
        if not isinstance(source, RunSource):
            assert autoencoder.scaling_factor is not None, "That of Stable Diffusion is known."
            return autoencoder.scaling_factor
        folder, step = source.folder, source.step
    return saved_scaling_factor(folder, step, autoencoder)


def saved_scaling_factor(folder: Path, step: int, autoencoder: TrainedAutoencoder) -> float:
    """The factor of the latents of a saved step.

    Raise ValueError if it is unknown, or if the step was trained on another autoencoder.
    """
    check_trained_with(folder, step, AUTOENCODER, autoencoder.hash, autoencoder.folder)
    scale = saved_steps.data_at(folder, step).get("scaling_factor")
    if scale is None:
        raise ValueError(
            f"Checkpoint {step} of {folder} does not say how its latents are scaled: use another "
            "checkpoint."
        )
    return float(scale)


def images_hash(images: ImageSet) -> str:
    """A SHA-256 of all pixels, in order."""
    digest = hashlib.sha256()
    for start in range(0, len(images), BATCH):
        indices = np.arange(start, min(start + BATCH, len(images)))
        digest.update(np.ascontiguousarray(images.read(indices)["image"]).data)
    return digest.hexdigest()


def _read(path: Path, made_of: str) -> Any:
    """The latents in a file, or None if they are missing or of other origin."""
    try:
        with np.load(path) as file:
            return file["latents"] if str(file["made_of"]) == made_of else None
    # A damaged file raises errors of many types, and is made again.
    except Exception:
        return None


def encode_means(
    model: ImageAutoencoder, params: Params, images: ImageSet
) -> Float[np.ndarray, "n h w c"]:
    """The means of the latents of all images, encoded in batches."""
    print(f"encoding {len(images):,} images", file=sys.stderr)
    height, width, _ = model.image_shape
    batch = min(BATCH, max(1, PIXELS_PER_BATCH // (height * width)))
    batches = []
    for start in range(0, len(images), batch):
        # The last batch is filled with the first images, so that all have one shape.
        indices = np.arange(start, start + batch) % len(images)
        pixels = jnp.asarray(to_floats(images.read(indices)["image"]))
        batches.append(np.asarray(_means(model, params, pixels)))
    return np.concatenate(batches)[: len(images)]


@functools.partial(jax.jit, static_argnums=0)
def _means(model: ImageAutoencoder, params: Params, pixels: jax.Array) -> jax.Array:
    return posterior_sample(model.encode(params, pixels), None)
