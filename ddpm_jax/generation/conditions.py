"""Conditions that a network is given beside labels: their checks, and the arrays for a batch."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data.condition_images import read_condition_images
from ddpm_jax.data.conditions import IMAGE, KINDS, PARTS, VECTOR, ConditionedImages, Part
from ddpm_jax.data.values import Levels, ScaledValues
from ddpm_jax.errors import check
from ddpm_jax.models import NO_CLASS, Model

Conditions = Mapping[str, np.ndarray]
"""The arrays (m, ...) of a condition by `Model.condition_parts`, without labels."""


def parts_of(model: Model) -> list[Part]:
    """The parts of a network's condition, without labels."""
    return [part for part in PARTS if part.name in model.condition_parts]


def size_of(model: Model, part: Part) -> int | None:
    """The size of a part that a network takes."""
    return getattr(model, part.setting)


def check_condition_settings(model: Model, data: DataSource) -> None:
    """Raise ValueError unless the network takes the condition of the data, and no other."""
    kind = None if data.condition is None else KINDS[data.condition]
    if kind is not None:
        check(
            kind.part in parts_of(model),
            f"The network does not take data.condition {data.condition}: set "
            f"model.{kind.part.setting}, or leave data.condition out.",
        )
    for part in parts_of(model):
        kinds = [name for name, other in KINDS.items() if other.part == part]
        check(
            kind is not None and kind.part == part,
            f"The network takes a condition (model.{part.setting}) that the data does not give: "
            f"set data.condition to {' or '.join(kinds)}, or leave model.{part.setting} out.",
        )
    if kind is not None and kind.size is not None:
        _check_made_condition(model, data, kind.part, kind.size(model.channels))


def _check_made_condition(model: Model, data: DataSource, part: Part, size: int) -> None:
    """Raise ValueError unless a condition of this size can be made of the images."""
    height, width, channels = model.image_shape
    taken = size_of(model, part)
    check(
        size == taken,
        f"For data.condition {data.condition} set model.{part.setting} to {size}, not {taken}.",
    )
    check(
        data.condition != "grey" or channels == 3,
        f"A grey copy is of colour images: set model.channels to 3, not {channels}.",
    )
    check(
        data.condition != "reduced" or height % data.reduction == width % data.reduction == 0,
        f"Blocks of {data.reduction}x{data.reduction} pixels do not divide images of "
        f"{height}x{width}: set data.reduction to a divisor of both sides.",
    )


def check_given_size(model: Model, images: ImageSet, remedy: str | None = None) -> None:
    """Raise ValueError if the conditions of images have another size than the network takes.

    Conditions that are made of the images are not checked here. The message ends in `remedy`, by
    default the setting of a new network.
    """
    if not isinstance(images, ConditionedImages) or images.kind.size is not None:
        return
    part = images.part
    size = images.conditions.shape[-1]
    taken = size_of(model, part)
    remedy = remedy or f"set --model.{part.setting.replace('_', '-')} {size}"
    check(
        size == taken,
        f"The conditions of this data have {size} {part.unit}, but the network takes {taken}: "
        f"{remedy}.",
    )


def conditions_at(model: Model, images: ImageSet, indices: np.ndarray) -> dict[str, Any]:
    """The labels and conditions of these images, as arguments of `generate`.

    They are empty for images without a condition, which are drawn class by class.
    """
    if not isinstance(images, ConditionedImages):
        return {}
    batch = images.read(indices)
    conditions = {"conditions": {images.part.name: batch[images.part.name]}}
    if "label" not in model.condition_parts:
        return conditions
    return conditions | {"labels": batch["label"].tolist()}


def blank_conditions(model: Model) -> Conditions | None:
    """Conditions of zeros, to measure times with; None for a network without conditions."""
    shapes = {
        VECTOR: (1, model.vector_size or 0),
        IMAGE: (1, *model.image_shape[:2], model.condition_channels or 0),
    }
    zeros = {part.name: np.zeros(shapes[part], np.float32) for part in parts_of(model)}
    return zeros or None


def read_conditions(
    model: Model, given: np.ndarray, values: Levels, name: str = "The condition"
) -> Conditions:
    """Scale conditions for a network.

    `given` is a vector (k,) or (m, k), or an image (h, w, c) or (m, h, w, c), in the unit of the
    data. Smaller images are enlarged. Messages call it `name`. Raise ValueError if the network
    takes no condition, or if its shape does not fit or a value is not finite.
    """
    check(bool(parts_of(model)), "This network has no such condition: leave the condition out.")
    if model.condition_channels is not None:
        channels = model.condition_channels
        images = read_condition_images(given, channels, model.image_size, values, name)
        return {"condition_image": images}
    is_real = given.dtype.kind in "biuf"
    vectors = given[None] if given.ndim == 1 else given
    check(
        is_real
        and vectors.ndim == 2
        and vectors.shape[1] == model.vector_size
        and len(vectors) > 0,
        f"{name} is {given.dtype} {given.shape}, but the network takes {model.vector_size} "
        f"numbers: give an array (n, {model.vector_size}).",
    )
    check(bool(np.isfinite(vectors).all()), f"{name} has values that are not finite.")
    check(
        isinstance(values, ScaledValues),
        "The scale of the condition's numbers is unknown: give condition_values, those of the run.",
    )
    return {"vector": values.to_network(vectors)}


def count_of(conditions: Conditions | None) -> int:
    """The number of conditions."""
    return 0 if conditions is None else len(next(iter(conditions.values())))


def condition_at(
    model: Model, labels: np.ndarray, conditions: Conditions | None, indices: Int[Array, " b"]
) -> Any:
    """The condition of samples, which take the rows of labels and conditions in turn.

    Without conditions it is `Model.unconditional`. Raise ValueError if the network needs some, and
    for labels without conditions or the reverse, because training hides both together.
    """
    label = jnp.asarray(labels)[indices % len(labels)]
    unconditional = model.unconditional(len(indices))
    if not parts_of(model):
        return model.condition_of({"label": label})
    if conditions is None:
        check(
            unconditional is not None,
            "This network draws what its condition says: give conditions, such as --condition.",
        )
        check(
            "label" not in model.condition_parts or bool(np.all(labels == NO_CLASS)),
            "This network has not seen labels without its other condition: give conditions too.",
        )
        conditions = unconditional
    else:
        check(
            "label" not in model.condition_parts or NO_CLASS not in labels,
            "This network has not seen its condition without a label: give a label too.",
        )
    # Rows are taken on the host, so that a device holds those of one batch.
    host = np.asarray(indices)
    rows = {name: jnp.asarray(array[host % len(array)]) for name, array in conditions.items()}
    return model.condition_of(rows | {"label": label})
