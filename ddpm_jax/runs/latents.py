"""The latents and token ids that a latent run trains on, and the files it keeps of them.

`autoencoder/` is the run of the autoencoder, `tokenizer/` holds the tokenizer's files, and
`latents.npz` the latents of all images.
"""

import functools
import hashlib
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddpm_jax.data import Batch, ImageSet
from ddpm_jax.data.pixels import to_floats
from ddpm_jax.devices import hosts
from ddpm_jax.errors import check
from ddpm_jax.files import atomic_file
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import posterior_sample
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.pretrained.hub import TOKENIZER_FILES
from ddpm_jax.runs import directory, manifest, saved_steps
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS, load_params
from ddpm_jax.text_to_image.learn_tokenizer import learn_tokenizer
from ddpm_jax.text_to_image.tokenizer import make_tokenizer, tokenize

AUTOENCODER = "autoencoder"
TOKENIZER = "tokenizer"
LATENTS = "latents.npz"
BATCH = 64


class Latents(NamedTuple):
    """An `ImageSet` of scaled latents (n, h, w, c) float32 with token ids (n, length)."""

    images: np.ndarray
    labels: np.ndarray
    scaling_factor: float
    """1 / std of all latents."""
    autoencoder: str
    """The fingerprint of the autoencoder that made them."""
    captions: tuple[str, ...]
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Batch:
        return {"image": self.images[indices], "label": self.labels[indices]}


def first_folder(config: LatentConfig, workdir: Path) -> Path:
    """The folder of the autoencoder and the tokenizer: of the run that training starts from."""
    return Path(config.training.init_from or workdir)


def load_latents(config: LatentConfig, workdir: Path) -> Latents:
    """The latents of the images of a run, and the ids of their captions.

    Learn the tokenizer if there is none yet, and encode the images if the file of latents is
    missing or was made by another autoencoder or of other captions. Raise FileNotFoundError if the
    autoencoder is not trained.
    """
    model = config.autoencoder.model
    images = config.data.load(model.image_size, model.channels)
    captions = images.captions
    assert captions is not None, "LatentConfig needs a source of captions."
    first = first_folder(config, workdir)
    net = config.model
    assert isinstance(net, TextUNet)
    files = tokenizer_files(first)
    if not files:
        files = learn_tokenizer(captions, net.vocab_size, net.max_length)
        if hosts.is_primary():
            for name, content in files.items():
                _write(first / TOKENIZER / name, content)
    with warnings.catch_warnings():
        # A caption that is cut is still a caption.
        warnings.simplefilter("ignore")
        ids = tokenize(make_tokenizer(files), captions)
    return _encoded(config, workdir, images, ids)


def clear(workdir: Path) -> None:
    """Remove the files of a latent run from its directory, except those of its autoencoder."""
    if hosts.is_primary():
        directory.clear(workdir)
        (workdir / LATENTS).unlink(missing_ok=True)
        shutil.rmtree(workdir / TOKENIZER, ignore_errors=True)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of the tokenizer of a run by name, none if there are none yet."""
    paths = {name: folder / TOKENIZER / name for name in TOKENIZER_FILES}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def _encoded(config, workdir, images: ImageSet, ids: np.ndarray) -> Latents:
    """The latents of images with their ids, from the file if it has them."""
    folder = first_folder(config, workdir) / AUTOENCODER
    _, step = saved_steps.resolve_checkpoint(folder)
    fingerprint = autoencoder_fingerprint(folder, step)
    captions = images.captions or ()
    texts = "\n".join(captions)
    made_of = f"{fingerprint} {hashlib.sha256(texts.encode()).hexdigest()}"
    path = workdir / LATENTS
    saved = _read(path, made_of)
    if saved is None:
        params = load_params(config.autoencoder_config, folder, step, DEFAULT_WEIGHTS)
        latents = encode_means(config.autoencoder.model, params, images)
        saved = {"latents": latents, "scaling_factor": 1 / np.std(latents), "made_of": made_of}
        if hosts.is_primary():
            with atomic_file(path) as file:
                np.savez(file, **saved)
    scale = float(saved["scaling_factor"])
    scaled = np.float32(scale) * saved["latents"]
    return Latents(scaled, ids, scale, fingerprint, captions)


def _read(path: Path, made_of: str) -> dict[str, Any] | None:
    """The arrays of a file of latents, or None if they are missing or of other origin."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return arrays if str(arrays["made_of"]) == made_of else None
    # A damaged file raises errors of many types, and is made again.
    except Exception:
        return None


def encode_means(
    model: ImageAutoencoder, params: Params, images: ImageSet
) -> Float[np.ndarray, "n h w c"]:
    """The means of the latents of all images, encoded in batches."""
    print(f"encoding {len(images):,} images", file=sys.stderr)
    batches = []
    for start in range(0, len(images), BATCH):
        # The last batch is filled with the first images, so that all have one shape.
        indices = np.arange(start, start + BATCH) % len(images)
        pixels = jnp.asarray(to_floats(images.read(indices)["image"]))
        batches.append(np.asarray(_means(model, params, pixels)))
    return np.concatenate(batches)[: len(images)]


@functools.partial(jax.jit, static_argnums=0)
def _means(model: ImageAutoencoder, params: Params, pixels: jax.Array) -> jax.Array:
    return posterior_sample(model.encode(params, pixels), None)


def autoencoder_fingerprint(folder: Path, step: int) -> str:
    """A hash of the files of a saved step of the autoencoder's run."""
    content = (folder / saved_steps.FOLDER / str(step) / manifest.NAME).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def check_autoencoder(folder: Path, step: int, fingerprint: str) -> None:
    """Raise ValueError if the latents of a saved step came from another autoencoder."""
    trained = saved_steps.data_at(folder, step).get("autoencoder", fingerprint)
    check(
        trained == fingerprint,
        f"The autoencoder of {folder} has changed since step {step}, so the network's latents are "
        "of another kind: restore it, or start afresh with --overwrite.",
    )


def load_autoencoder(config: LatentConfig, workdir: Path) -> tuple[Params, str]:
    """The averaged parameters of the autoencoder of a run, and its fingerprint."""
    folder = first_folder(config, workdir) / AUTOENCODER
    _, step = saved_steps.resolve_checkpoint(folder)
    own = directory.load_config(folder, step)
    return load_params(own, folder, step, DEFAULT_WEIGHTS), autoencoder_fingerprint(folder, step)
