"""Transformations of EDM's augmentation pipe, given to the network as numbers.

See Table 6 and appendix F.2, Karras et al. 2022. Order, strengths and numbers are those of its code
(training/augment.py of NVlabs/edm): pixels are moved, then resampled, then recoloured, and a
translation is the last of the resampled transformations.

Each transformation is applied to an image with a small probability, and numbers that describe it
are a condition of the network. They are 0 for images as they are, and in sampling, so that samples
show no augmentation.

These things differ. Every kind has one probability, whereas EDM mirrors every second image and
trains with flips and geometry alone. The resampling is bilinear and mirrors images at their borders
again and again, without the wavelet filters and the limited border of the original. The numbers of
transformations that are not chosen are there and 0. Images may have any height, width and number of
channels: only three channels have a hue, and one channel has no saturation, so these are 0 then. If
one side is even and the other odd, a quarter turn puts pixels between others, so it blurs.
"""

import functools
import math
from collections.abc import Collection, Sequence

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
TURNED_STRETCHES = 0.5
"""Probability that a stretch is not along an axis."""
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
    _, h, w, c = images.shape
    parameters = draw_parameters(keys, names_of(kinds, c), probability)
    parameters["shift"] = whole_pixels(parameters["shift"], h, w)
    if "blitting" in kinds:
        images = move_pixels(images, parameters)
    if "geometry" in kinds:
        images = resample(images, parameters)
    if "colour" in kinds:
        images = recolour(images, parameters)
    return images, describe(parameters)


def names_of(kinds: Sequence[AugmentationKind], channels: int) -> set[str]:
    """The names of the transformations of these kinds.

    Hue needs three channels and saturation more than one, so other images get neither.
    """
    names = {name for kind in kinds for name in MEMBERS[kind]}
    impossible = {"hue"} if channels != 3 else set()
    return names - impossible - ({"saturation"} if channels == 1 else set())


def draw_parameters(
    keys: Key[Array, " b"], names: Collection[str], probability: float
) -> Parameters:
    """Draw the parameters of the named transformations; those of the others are 0."""
    parameters = {}
    for members in MEMBERS.values():
        for name in members:
            own = draws.fold_in_name(keys, name)
            values = _draw(draws.fold_in(own, 0), name)
            is_applied = draws.uniform(draws.fold_in(own, 1), (1,)) < probability
            parameters[name] = jnp.where(is_applied & (name in names), values, 0.0)
    return parameters


def whole_pixels(shift: Float[Array, "b 2"], h: int, w: int) -> Float[Array, "b 2"]:
    """Shifts, as fractions of the largest one, rounded to whole pixels."""
    largest = MAX_SHIFT * jnp.array([[w, h]], jnp.float32)
    return jnp.round(shift * largest) / largest


def _draw(keys: Key[Array, " b"], name: str) -> Float[Array, "b n"]:
    shape = (SIZES.get(name, 1),)
    if name in ("x_flip", "y_flip", "luma_flip"):
        return jnp.floor(2 * draws.uniform(keys, shape))
    if name == "turn":
        return jnp.floor(4 * draws.uniform(keys, shape))
    if name in ("shift", "rotation", "hue"):
        return 2 * draws.uniform(keys, shape) - 1
    if name == "stretch":
        # Its strength, and its direction as a part of half a turn.
        strength = draws.normal(draws.fold_in(keys, 0), (1,))
        direction = 2 * draws.uniform(draws.fold_in(keys, 1), (1,)) - 1
        is_turned = draws.uniform(draws.fold_in(keys, 2), (1,)) < TURNED_STRETCHES
        return jnp.concatenate([strength, jnp.where(is_turned, direction, 0.0)], 1)
    return draws.normal(keys, shape)


def describe(parameters: Parameters) -> Float[Array, "b m"]:
    """The numbers that a network is told. Angles are cos - 1 and sin, which are 0 for no turn."""
    columns = []
    for names in MEMBERS.values():
        for name in names:
            value = parameters[name]
            if name == "turn":
                # The two flips that a quarter turn consists of, beside the exchange of the axes.
                value = jnp.concatenate([(value == 1) | (value == 2), value >= 2], 1)
            if name in ("rotation", "hue"):
                angle = math.pi * value
                value = jnp.concatenate([jnp.cos(angle) - 1, jnp.sin(angle)], 1)
            if name == "stretch":
                strength, direction = value[:, :1], math.pi * value[:, 1:]
                value = strength * jnp.concatenate([jnp.cos(direction), jnp.sin(direction)], 1)
            columns.append(value.astype(jnp.float32))
    return jnp.concatenate(columns, 1)


def move_pixels(images: Float[Array, "b h w c"], parameters: Parameters) -> Float[Array, "b h w c"]:
    """Flip, turn and then shift images by whole pixels. A positive shift is right and up."""
    _, h, w, _ = images.shape
    p = parameters
    flips = 1 - 2 * jnp.concatenate([p["x_flip"], p["y_flip"]], 1)  # (b, 2)
    matrix = _product([_diagonal(flips), _quarter_turns(p["turn"][:, 0])])
    largest = MAX_SHIFT * jnp.array([[w, -h]], jnp.float32)
    return jax.vmap(_resample_one)(images, matrix, jnp.round(p["shift"] * largest))


def resample(images: Float[Array, "b h w c"], parameters: Parameters) -> Float[Array, "b h w c"]:
    """Scale, rotate, stretch and then translate images."""
    _, h, w, _ = images.shape
    p = parameters
    strength = p["stretch"][:, :1]
    direction = math.pi * p["stretch"][:, 1]
    matrix = _product(
        [
            _diagonal(2 ** (-SCALE_STD * p["scale"]) * jnp.ones(2, jnp.float32)[None]),
            _rotation(math.pi * p["rotation"][:, 0]),
            _rotation(-direction),
            _diagonal(2 ** (STRETCH_STD * jnp.concatenate([-strength, strength], 1))),
            _rotation(direction),
        ]
    )
    translation = TRANSLATION_STD * p["translation"] * jnp.array([[w, h]], jnp.float32)
    return jax.vmap(_resample_one)(images, matrix, translation)


def _product(matrices: Sequence[Float[Array, "b 2 2"]]) -> Float[Array, "b 2 2"]:
    # By default, some accelerators multiply in bfloat16.
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), matrices)


def _resample_one(image, matrix, shift):
    """Take the pixel at x, from the centre, from A (x - shift)."""
    h, w, _ = image.shape
    centre = jnp.array([[[(w - 1) / 2, (h - 1) / 2]]], jnp.float32)
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    x = jnp.stack([columns, rows], -1).astype(jnp.float32) - centre - shift[None, None]  # (h, w, 2)
    # A product of matrices would be in bfloat16 on some accelerators.
    source = (matrix[None, None] * x[..., None, :]).sum(-1) + centre
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
    """Apply the colour transformations to images."""
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
