"""Attention over the steps of a sampling: where the words of a text act, and where a pixel looks.

map_i = mean over layers and heads of max(0, resize(sum over steps of the probability of i))
                                                            DAAM, section 3, Tang et al. 2022

The networks are applied to the saved states of a sampling, so samplers know nothing of the maps.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.diffusion.guidance import Condition, bind
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.models.attention import AttentionKind, attention_probabilities

CUBIC = -0.75
"""The slope of the cubic kernel at 1. PyTorch has this one, and jax.image.resize has -0.5."""
MIDDLE = "mid"
"""Start of the paths of the layers in the middle of a U-Net."""
HEADS = -4
"""The axis of the heads in (..., heads, h, w, n)."""


def attention_maps(
    net: Any,
    params: Params,
    states: Float[Array, "steps b h w c"],
    grid: GridRow,
    condition: Condition = None,
    *,
    pixels: Sequence[tuple[int, int]] | None = None,
    middle: bool = False,
    keep_layers: bool = False,
    keep_heads: bool = False,
    dtype: str = "float32",
) -> Any:
    """The maps (b, h, w, n) of a network's attention, summed over the steps, by one `lax.scan`.

    `states` are the inputs xt of the rows of the grid, as `sample(..., trajectory=True)[:-1]` has
    them; the network gets the condition alone, without guidance. Map i shows the attention of each
    pixel to token i of the text (cross-attention). With `pixels`, the rows and columns of n pixels
    of xt, map i shows the attention of the i-th of them to each pixel (self-attention).

    Maps have the size of xt. `middle` adds the layers in the middle of the network. `keep_heads`
    keeps the heads (b, heads, h, w, n), and `keep_layers` returns a dict by the path of the layer.
    Raise ValueError if the network has no such layer, for pixels outside xt, unless there is a
    state per row, and for heads that are kept but differ in number among averaged layers.
    """
    kind: AttentionKind = "cross_attention" if pixels is None else "self_attention"
    attention = bind(Partial(attention_of(net, kind, dtype), params), condition)
    sums = attention_sums(attention, states, grid, pixels=pixels, middle=middle)
    whole = jax.tree.map(lambda parts: parts[0], sums)
    return merge_maps(whole, states.shape[2:4], keep_layers=keep_layers, keep_heads=keep_heads)


@functools.cache
def attention_of(net: Any, kind: AttentionKind, dtype: str = "float32") -> Callable:
    """`net.queries_and_keys` with these options: always the same function, as `jit` needs it."""
    return functools.partial(net.queries_and_keys, kind=kind, dtype=jnp.dtype(dtype))


def attention_sums(
    attention: Callable,
    states: Float[Array, "steps b h w c"],
    grid: GridRow,
    *,
    pixels: Sequence[tuple[int, int]] | None = None,
    middle: bool = False,
    parts: int = 1,
) -> dict[str, Array]:
    """Sum each layer's maps over the steps, separately for each of `parts` parts of the grid.

    `attention` (xt, t) -> queries and keys by layer is a network with its condition bound. The sums
    (parts, b, heads, h, w, n) have the sizes of the layers; `merge_maps` takes them. They take
    66 MB per image and part for Stable Diffusion 1 at 512x512. Raise ValueError as `attention_maps`
    does.
    """
    steps, _, height, width, _ = states.shape
    rows = len(grid.i)
    check(
        steps == rows,
        f"There are {steps} states for the {rows} rows of the grid: give the input of each row.",
    )
    for row, column in pixels or ():
        check(
            0 <= row < height and 0 <= column < width,
            f"Pixel ({row}, {column}) is outside of {height}x{width}: choose one inside.",
        )
    check(
        1 <= parts <= rows,
        f"{rows} rows of a grid cannot be split into {parts} parts: choose 1 to {rows}.",
    )
    queries = None if pixels is None else jnp.asarray(pixels, jnp.int32).reshape(-1, 2)
    return _sums(attention, jnp.asarray(states), jnp.asarray(grid.t), queries, middle, parts)


@functools.partial(jax.jit, static_argnames=("middle", "parts"))
def _sums(attention, states, t, pixels, middle, parts):
    steps, _, height, width, _ = states.shape

    def maps_at(xt, t):
        layers = attention(xt, jnp.broadcast_to(t, xt.shape[:1]))
        return {
            name: _layer_maps(q, k, height, width, pixels)
            for name, (q, k) in layers.items()
            if middle or not name.startswith(MIDDLE)
        }

    def add(sums, row):
        xt, t, part = row
        maps = maps_at(xt, t)
        return jax.tree.map(lambda total, new: total.at[part].add(new), sums, maps), None

    shapes = jax.eval_shape(maps_at, states[0], t[0])
    kind = "cross-attention" if pixels is None else "self-attention"
    place = "" if middle else " outside of its middle"
    others = ["give pixels for self-attention"] * (pixels is None) + ["set middle"] * (not middle)
    remedy = ", or ".join(others) or "there is nothing to map"
    check(len(shapes) > 0, f"The network has no {kind}{place}: {remedy}.")
    zeros = jax.tree.map(lambda maps: jnp.zeros((parts, *maps.shape), maps.dtype), shapes)
    part = jnp.arange(steps) * parts // steps  # (steps,)
    sums, _ = jax.lax.scan(add, zeros, (states, t, part))
    return sums


def _layer_maps(
    q: Float[Array, "b heads n d"],
    k: Float[Array, "b heads m d"],
    height: int,
    width: int,
    pixels: Int[Array, "p 2"] | None,
) -> Float[Array, "b heads h2 w2 k"]:
    """The maps of one layer for a text of k tokens, or for k pixels of xt."""
    rows, columns = layer_size(q.shape[2], height, width)
    if pixels is None:
        probabilities = attention_probabilities(q, k)  # (b, heads, h2 * w2, tokens)
    else:
        row, column = pixels[:, 0] * rows // height, pixels[:, 1] * columns // width
        chosen = q[:, :, row * columns + column]
        probabilities = attention_probabilities(chosen, k).swapaxes(-1, -2)
    return probabilities.reshape(*q.shape[:2], rows, columns, -1)


def layer_size(num_pixels: int, height: int, width: int) -> tuple[int, int]:
    """The size of a layer with this many pixels: xt's, halved and rounded up some times.

    Raise ValueError if there is none.
    """
    rows, columns = height, width
    while rows * columns > num_pixels:
        rows, columns = -(-rows // 2), -(-columns // 2)
    check(
        rows * columns == num_pixels,
        f"A layer with attention over {num_pixels} pixels does not fit {height}x{width} halved any "
        "number of times: its maps cannot be drawn.",
    )
    return rows, columns


@functools.partial(jax.jit, static_argnames=("size", "keep_layers", "keep_heads"))
def merge_maps(
    sums: dict[str, Array],
    size: tuple[int, int],
    *,
    keep_layers: bool = False,
    keep_heads: bool = False,
) -> Any:
    """Resize the maps of each layer and head to `size`, clamp them, and average those not kept.

    The sums are (..., heads, h, w, n), and the averages (..., h, w, n). Every head of every layer
    has the same weight. Raise ValueError as `attention_maps` does.
    """
    maps = {name: jnp.maximum(resize(total, size), 0.0) for name, total in sums.items()}
    if keep_layers:
        return maps if keep_heads else {name: each.mean(HEADS) for name, each in maps.items()}
    counts = [each.shape[HEADS] for each in maps.values()]
    if keep_heads:
        check(
            len(set(counts)) == 1,
            f"The layers have {sorted(set(counts))} heads, which cannot be averaged one by one: "
            "keep the layers too.",
        )
        return sum(maps.values()) / len(counts)
    return sum(each.sum(HEADS) for each in maps.values()) / sum(counts)


def resize(
    maps: Float[Array, "*b h w n"], size: tuple[int, int]
) -> Float[Array, "*b {size[0]} {size[1]} n"]:
    """Resize maps by bicubic interpolation, as PyTorch does without antialiasing."""
    rows, columns = (
        jnp.asarray(bicubic_matrix(old, new), maps.dtype)
        for old, new in zip(maps.shape[-3:-1], size, strict=True)
    )
    return jnp.einsum("Hh,Ww,...hwn->...HWn", rows, columns, maps, precision="highest")


def bicubic_matrix(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """The matrix that resizes a line of `old` pixels to `new` ones (Keys 1981, a = -0.75).

    Pixel centres are at half-integers, and the first and last pixel continue beyond the edges.
    """
    position = (np.arange(new) + 0.5) * old / new - 0.5
    nearest = np.floor(position).astype(int)
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        pixel = nearest + offset
        inside = np.clip(pixel, 0, old - 1)
        np.add.at(matrix, (np.arange(new), inside), _cubic(np.abs(position - pixel)))
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
