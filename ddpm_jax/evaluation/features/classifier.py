"""A small convolutional network, trained on the reference images and their labels.

Its features tell results on one data set apart where ImageNet's classes do not fit, such as digits.
They are comparable only among results that have the same data set and the same hash of the weights.
"""

import hashlib
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from ddpm_jax import draws, home
from ddpm_jax.data import ImageSet
from ddpm_jax.data.batches import batch_indices, steps_per_epoch
from ddpm_jax.errors import check
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.features._networks import (
    Layer,
    convolve,
    map_images,
    on_devices,
    to_colour,
)
from ddpm_jax.files import atomic_file
from ddpm_jax.training.optimizer import Optimizer, make_optimizer
from ddpm_jax.training.step import example_keys, init_state, make_train_step, training_keys

FORMAT = 2
"""The number of the training's code. A new one trains anew."""
WIDTHS = (32, 32, 64, 64, 128, 128)
STRIDES = (1, 2, 1, 2, 1, 2)
STEPS = 1000
BATCH = 128
RATE = 1e-3
HELD_OUT = 10
"""Every tenth image is held out of the training, to measure the accuracy."""
MAX_HELD_OUT = 5000
NUM_HASHED = 1000
"""Images whose pixels tell data sets apart, besides all labels."""

Layers = list[Layer]


def load(images: ImageSet | None = None, seed: int = 0) -> Features:
    """The 128 pooled features of a classifier of these images, trained now or read from the cache.

    Print its accuracy on the held-out images to stderr. Raise ValueError for images without labels.
    """
    labels = None if images is None else images.labels
    if images is None or labels is None or labels.ndim != 1 or labels.min() < 0:
        raise ValueError(
            "The features classifier are trained on labels, which some of the images lack: "
            "choose other features, such as efficientnet."
        )
    folder = home.cache_folder("the classifier", "set XDG_CACHE_HOME to a folder")
    path = folder / f"classifier-{fingerprint(images)}-{seed}.npz"
    found = read(path)
    if found is None:
        layers = train(images, seed)
        found = layers, accuracy(layers, images)
        save(path, *found)
    layers, right = found
    weights = layers_hash(layers)
    print(
        f"The classifier {weights} (seed {seed}) is right on {right:.1%} of held-out images. Its "
        "features are comparable only with results of the same classifier.",
        file=sys.stderr,
    )
    return Features("classifier", weights, "none", on_devices(pooled, layers))


def fingerprint(images: ImageSet) -> str:
    """A hash of the labels, of some of the pixels, and of the settings of the training."""
    rows = np.linspace(0, len(images) - 1, min(len(images), NUM_HASHED)).astype(int)
    pixels = images.read(rows)["image"]
    settings = (FORMAT, WIDTHS, STRIDES, STEPS, BATCH, RATE, HELD_OUT, pixels.shape, len(images))
    parts = (
        repr(settings).encode(),
        np.asarray(images.labels, np.int64).tobytes(),
        pixels.tobytes(),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def train(images: ImageSet, seed: int) -> Layers:
    """Train on the images that are not held out, on one device: more would round differently."""
    params_key, key = training_keys(seed)
    rows = training_rows(len(images))
    num_classes = int(np.asarray(images.labels).max()) + 1
    settings = Optimizer(learning_rate=RATE, decay="cosine")
    tx = make_optimizer(settings, STEPS, steps_per_epoch(len(rows), BATCH))
    train_step = jax.jit(make_train_step(cross_entropy, tx), donate_argnums=0)
    state = init_state(init(params_key, num_classes), tx)
    for step in tqdm(range(STEPS), "Training the classifier", unit="step", leave=False):
        examples = images.read(rows[batch_indices(seed, step, BATCH, len(rows))])
        keys = example_keys(key, step, jnp.arange(BATCH))
        batch = {"image": to_colour(examples["image"]), "label": examples["label"], "key": keys}
        state, _ = train_step(state, batch)
    return jax.device_get(state.params)


def training_rows(num_images: int) -> np.ndarray:
    """The images that are not held out. Raise ValueError if there are too few to hold one out."""
    check(
        num_images >= HELD_OUT,
        f"The features classifier need at least {HELD_OUT} images to train on, not {num_images}.",
    )
    rows = np.arange(num_images)
    return rows[rows % HELD_OUT != HELD_OUT - 1]


def accuracy(layers: Layers, images: ImageSet) -> float:
    """The share of at most 5,000 held-out images, taken at random, whose class is right."""
    held_out = np.setdiff1d(np.arange(len(images)), training_rows(len(images)))
    rows = np.sort(np.random.RandomState(0).permutation(held_out)[:MAX_HELD_OUT])
    batch = images.read(rows)
    return float(np.mean(classify(layers, batch["image"]) == batch["label"]))


def classify(layers: Layers, images: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, " n"]:
    """The most probable class of each image."""
    return np.argmax(map_images(logits, layers, images), 1)


def init(key: Key[Array, ""], num_classes: int) -> Layers:
    """Draw the layers: 3x3 convolutions, then the classes. Eq. 10, He et al. 2015."""
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise((3, *WIDTHS, num_classes))):
        size = 3 if i < len(WIDTHS) else 1
        std = (2 / (size**2 * inputs)) ** 0.5
        kernel = std * draws.normal(draws.fold_in(key, i), (size, size, inputs, outputs))
        layers.append(Layer(kernel, jnp.zeros((1, 1, 1, outputs), jnp.float32)))
    return layers


def pooled(layers: Layers, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """The mean of the last feature map over its pixels."""
    x = images.astype(jnp.float32) / 127.5 - 1
    for layer, stride in zip(layers, STRIDES, strict=False):  # the last layer has the classes
        x = jax.nn.relu(convolve(x, layer, stride))
    return x.mean((1, 2))


def logits(layers: Layers, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b k"]:
    return convolve(pooled(layers, images)[:, None, None], layers[-1])[:, 0, 0]


def cross_entropy(layers: Layers, keys: Key[Array, " b"], batch: Mapping) -> Float[Array, " b"]:
    """The loss of each image, which draws nothing with its key."""
    log_probabilities = jax.nn.log_softmax(logits(layers, batch["image"]))
    return -jnp.take_along_axis(log_probabilities, batch["label"][:, None], 1)[:, 0]


def save(path: Path, layers: Layers, right: float) -> None:
    """Write the layers and the accuracy, or say on stderr why that is impossible."""
    arrays = {
        f"{i}/{name}": array
        for i, each in enumerate(layers)
        for name, array in each._asdict().items()
    }
    try:
        with atomic_file(path) as file:
            np.savez(file, accuracy=right, **arrays)
    except OSError as error:
        print(f"The classifier is not cached ({error}): set XDG_CACHE_HOME.", file=sys.stderr)


def read(path: Path) -> tuple[Layers, float] | None:
    """The layers and the accuracy; None if there is no file, or if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            count = len(WIDTHS) + 1
            layers = [Layer(*(file[f"{i}/{name}"] for name in Layer._fields)) for i in range(count)]
            return layers, float(file["accuracy"])
    # A damaged file raises errors of many types, and is made again.
    except Exception:
        return None


def layers_hash(layers: Layers) -> str:
    """A hash of the layers' numbers."""
    data = b"".join(np.asarray(array).tobytes() for layer in layers for array in layer)
    return hashlib.sha256(data).hexdigest()[:8]
