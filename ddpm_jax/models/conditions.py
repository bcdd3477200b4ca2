"""The parts of a network's condition: labels, numbers, and an image to concatenate."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax import draws
from ddpm_jax.errors import check, check_floats, check_shape

AugmentationKind = Literal["blitting", "geometry", "colour"]
AUGMENTATION_NUMBERS = 19
"""How many numbers tell a network how an image was augmented."""
NO_CLASS = -1
"""The label that stands for no class."""
NO_NUMBER = float(jnp.finfo(jnp.float32).min)
"""Each number of a vector or an image that stands for none.

NaN would end programs under jax_debug_nans.
"""


def label_rows(net: Any, labels: Num[Array, "n ..."] | None, n: Any) -> Num[Array, "n ..."] | None:
    """The rows of the label embedding. With label dropout, the last one stands for no class."""
    if not net.label_dropout or net.num_classes is None:
        return labels
    if labels is None:
        labels = jnp.full(n, NO_CLASS, jnp.int32)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        # Few bits could not hold the rows that are no class.
        labels = labels.astype(jnp.int32)
    # A label out of range gives NaN, as it does without label dropout.
    labels = jnp.where(labels == net.num_classes, net.label_count, labels)
    return jnp.where(labels == NO_CLASS, net.num_classes, labels)


def condition_image(net: Any, parts: Mapping[str, Any], shape: tuple) -> Float[Array, "b h w k"]:
    """The image to concatenate to images of this shape; zeros if it is hidden.

    With `net.flags_hidden_image`, a last channel is 1 where the image is hidden. Raise ValueError
    if the network, a `Model`, needs one or takes another shape.
    """
    shape = (*shape[:-1], net.condition_channels)
    image = parts.get("condition_image")
    if image is None:
        check(net.label_dropout > 0, "This network is conditioned on an image: give it one.")
        image = jnp.full(shape, net.hidden_pixel, jnp.float32)
    check_shape(shape, condition_image=image)
    check_floats(condition_image=image)
    if not net.flags_hidden_image:
        return image
    return _flagged(image)


def _flagged(numbers: Float[Array, "*b k"]) -> Float[Array, "*b m"]:
    """Numbers with zeros where they are hidden, and a last one that is 1 there."""
    is_hidden = numbers[..., :1] == NO_NUMBER
    known = jnp.where(is_hidden, 0, numbers)
    return jnp.concatenate([known, is_hidden.astype(known.dtype)], -1)


def condition_numbers(net: Any, parts: Mapping[str, Any], n: Any) -> Float[Array, "n m"] | None:
    """The numbers (n, m) that join the time embedding: vector, noise level, augmentation.

    None if the network, a `Model`, takes none.

    In `jax.export` n may be symbolic. Raise ValueError if a part is missing or has another shape.
    """
    columns = []
    if net.vector_size is not None:
        columns.append(_vector(net, parts.get("vector"), n))
    if net.condition_noise:
        level = parts.get("condition_noise", jnp.zeros(n, jnp.float32))
        check_shape((n,), condition_noise=level)
        columns.append(level[:, None])
    if net.augmentation:
        zeros = jnp.zeros((n, AUGMENTATION_NUMBERS), jnp.float32)
        columns.append(parts.get("augmentation", zeros))
        check_shape(zeros.shape, augmentation=columns[-1])
    return jnp.concatenate(columns, 1) if columns else None


def _vector(net: Any, vector: Any, n: Any) -> Float[Array, "n m"]:
    """The vector. With label dropout, a last column is 1 where it is hidden and has zeros."""
    if vector is None:
        check(net.label_dropout > 0, "This network is conditioned on a vector: give it one.")
        vector = jnp.full((n, net.vector_size), NO_NUMBER, jnp.float32)
    check_shape((n, net.vector_size), vector=vector)
    return _flagged(vector) if net.label_dropout else vector


def add_condition_noise(
    keys: Key[Array, " b"], condition: Mapping[str, Array], std: Float[Array, " b"]
) -> dict[str, Array]:
    """Add noise to the image of a condition, sqrt(1 - std^2) c + std eps, and say how much.

    This is the conditioning augmentation of cascades (section 4, Ho et al. 2022). An image of
    NO_NUMBER stays hidden, and its noise is 0.
    """
    image = condition["condition_image"]
    eps = draws.normal(draws.fold_in_name(keys, "condition"), image.shape[1:])
    s = std[:, None, None, None]
    noisy = jnp.sqrt(1 - s**2) * image + s * eps
    is_hidden = image[:, :1, :1, :1] == NO_NUMBER  # (b, 1, 1, 1)
    return {
        **condition,
        "condition_image": jnp.where(is_hidden, NO_NUMBER, noisy),
        "condition_noise": jnp.where(is_hidden[:, 0, 0, 0], 0, std),
    }
