"""Transformations of EDM's augmentation pipe, given to the network as numbers.

See appendix F.2, Karras et al. 2022. EDM itself trains with flips and geometry alone, mirrors every
second image, and stretches half of the images along their axes; here every kind has one
probability, and a stretch has any direction.

Each transformation is applied to an image with a small probability, and numbers that describe it
are a condition of the network. They are 0 for images as they are, and in sampling, so that samples
show no augmentation. All geometric transformations are one bilinear resampling, mirrored at the
borders, without the wavelet filters of the original.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from ddpm_jax import draws
from ddpm_jax.models.conditions import AugmentationKind

MEMBERS: dict[AugmentationKind, tuple[str, ...]] = {
    "blitting": ("x_flip", "y_flip", "turn", "shift"),
    "geometry": ("scale", "rotation", "stretch", "translation"),
    "colour": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
}
"""The transformations of each kind, in the order in which they are told."""
SIZES = {"shift": 2, "stretch": 2, "translation": 2}
"""The length of each transformation's parameter, if it is not 1."""
MAX_SHIFT = 1 / 8
SCALE_STD = 0.2
STRETCH_STD = 0.2
TRANSLATION_STD = 1 / 8
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5

Parameters = dict[str, Float[Array, "b n"]]
"""The parameters of each transformation, which are 0 for images as they are."""


def augment(
    keys: Key[Array, " b"],
    images: Float[Array, "b h w c"],
    kinds: Sequence[AugmentationKind],
    probability: float,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b m"]]:
    """Augment each image by its own key. Return the images, and the numbers to tell the network."""
    parameters = draw_parameters(keys, kinds, probability)
    images = recolour(resample(images, parameters), parameters)
    return images, describe(parameters)


def draw_parameters(
    keys: Key[Array, " b"], kinds: Sequence[AugmentationKind], probability: float
) -> Parameters:
    """Draw the parameters of the transformations of these kinds; those of the others are 0."""
    parameters = {}
    for kind, names in MEMBERS.items():
        for name in names:
            own = draws.fold_in_name(keys, name)
            values = _draw(draws.fold_in(own, 0), name)
            is_applied = draws.uniform(draws.fold_in(own, 1), (1,)) < probability
            parameters[name] = jnp.where(is_applied & (kind in kinds), values, 0.0)
    return parameters


def _draw(keys: Key[Array, " b"], name: str) -> Float[Array, "b n"]:
    shape = (SIZES.get(name, 1),)
    if name in ("x_flip", "y_flip", "luma_flip"):
        return jnp.floor(2 * draws.uniform(keys, shape))
    if name == "turn":
        return jnp.floor(4 * draws.uniform(keys, shape))
    if name in ("shift", "rotation", "hue"):
        return 2 * draws.uniform(keys, shape) - 1
    if name == "stretch":
        # Its strength, and its direction as a part of a turn.
        strength = draws.normal(draws.fold_in(keys, 0), (1,))
        return jnp.concatenate([strength, draws.uniform(draws.fold_in(keys, 1), (1,))], 1)
    return draws.normal(keys, shape)


def describe(parameters: Parameters) -> Float[Array, "b m"]:
    """The numbers that a network is told. Angles are cos - 1 and sin, which are 0 for no turn."""
    columns = []
    for names in MEMBERS.values():
        for name in names:
            value = parameters[name]
            if name in ("turn", "rotation", "hue"):
                angle = value * (math.pi / 2 if name == "turn" else math.pi)
                value = jnp.concatenate([jnp.cos(angle) - 1, jnp.sin(angle)], 1)
            if name == "stretch":
                strength, direction = value[:, :1], 2 * math.pi * value[:, 1:]
                value = strength * jnp.concatenate([jnp.cos(direction), jnp.sin(direction)], 1)
            columns.append(value)
    return jnp.concatenate(columns, 1)


def resample(images: Float[Array, "b h w c"], parameters: Parameters) -> Float[Array, "b h w c"]:
    """Apply the geometric transformations to images.

    The pixel at x, from the centre, is taken from A x - shift.
    """
    _, h, w, _ = images.shape
    size = jnp.array([[w, h]], jnp.float32)
    p = parameters
    flips = 1 - 2 * jnp.concatenate([p["x_flip"], p["y_flip"]], 1)  # (b, 2)
    scale = 2 ** (SCALE_STD * p["scale"])  # (b, 1)
    along = jnp.concatenate([p["stretch"][:, :1], -p["stretch"][:, :1]], 1)
    direction = 2 * math.pi * p["stretch"][:, 1]
    unstretched = _diagonal(2 ** (-STRETCH_STD * along))
    factors = [
        _diagonal(flips / scale),
        _quarter_turns(p["turn"][:, 0]),
        _rotation(math.pi * p["rotation"][:, 0]),
        _rotation(direction),
        unstretched,
        _rotation(-direction),
    ]
    # By default, some accelerators multiply in bfloat16.
    product = functools.partial(jnp.matmul, precision="highest")
    matrix = functools.reduce(product, factors)  # (b, 2, 2)
    shift = jnp.round(MAX_SHIFT * p["shift"] * size)
    shift = shift + TRANSLATION_STD * p["translation"] * size  # (b, 2)
    return jax.vmap(_resample_one)(images, matrix, shift)


def _resample_one(image, matrix, shift):
    h, w, _ = image.shape
    centre = jnp.array([[[(w - 1) / 2, (h - 1) / 2]]], jnp.float32)
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    x = jnp.stack([columns, rows], -1).astype(jnp.float32) - centre  # (h, w, 2)
    # A product of matrices would be in bfloat16 on some accelerators.
    source = (matrix[None, None] * x[..., None, :]).sum(-1) - shift[None, None] + centre
    coordinates = [source[..., 1], source[..., 0]]

    def of_channel(channel):
        return map_coordinates(channel, coordinates, order=1, mode="mirror")

    return jax.vmap(of_channel, -1, -1)(image)


def _diagonal(values):
    return values[..., None] * jnp.eye(2, dtype=jnp.float32)[None]


def _rotation(angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _quarter_turns(turns):
    """Rotations by quarter turns, whose entries are whole: pixels stay pixels."""
    return jnp.round(_rotation(turns * (math.pi / 2)))


def recolour(images: Float[Array, "b h w c"], parameters: Parameters) -> Float[Array, "b h w c"]:
    """Apply the colour transformations to images. Only three channels have a hue."""
    p = {name: parameters[name][:, None, None] for name in MEMBERS["colour"]}  # (b, 1, 1, 1)
    x = images + BRIGHTNESS_STD * p["brightness"]
    x = x * 2 ** (CONTRAST_STD * p["contrast"])
    grey = x.mean(-1, keepdims=True)
    colour = (x - grey) * 2 ** p["saturation"]
    if images.shape[-1] == 3:
        # Rotate about the grey axis by Rodrigues' formula.
        angle = math.pi * p["hue"]
        across = (jnp.roll(colour, 1, -1) - jnp.roll(colour, -1, -1)) / math.sqrt(3)
        colour = jnp.cos(angle) * colour + jnp.sin(angle) * across
    return (1 - 2 * p["luma_flip"]) * grey + colour
