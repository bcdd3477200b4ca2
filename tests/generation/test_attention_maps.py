"""Attention maps: DAAM's sums and means, the layers of networks, what may be kept, mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import UNET, draw
from helpers.refusals import assert_refused
from helpers.text import smallest_model
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax.diffusion.guidance import bind
from ddpm_jax.diffusion.schedule import from_betas, linear_betas
from ddpm_jax.generation import attention_maps as module
from ddpm_jax.generation.attention_maps import (
    attention_maps,
    attention_sums,
    bicubic_matrix,
    merge_maps,
)

GRID = dj.make_grid(from_betas(linear_betas(1000)), np.array([900, 500, 100]))
SIZE = (5, 6)
RNG = np.random.default_rng(0)
STATES = jnp.asarray(RNG.standard_normal((3, 2, *SIZE, 4), np.float32))
TOKENS = 7
TEXT = dj.TextCondition(jnp.asarray(RNG.standard_normal((2, TOKENS, 8), np.float32)))
LAYERS = {
    "down": RNG.standard_normal((2, 2, 30, 4), np.float32),
    "mid": RNG.standard_normal((2, 2, 4, 4), np.float32),
    "up": RNG.standard_normal((2, 4, 9, 4), np.float32),
}
SHAPES = {"down": (5, 6), "mid": (2, 2), "up": (3, 3)}
"""Queries of layers, each halved and rounded up from the one before, with 2 or 4 heads."""
KEYS = RNG.standard_normal((2, 4, TOKENS, 4), np.float32)


def scripted(xt, t):
    """Queries that depend on xt and t, and keys of a text."""
    scale = 1 + 0.1 * jnp.mean(xt, (1, 2, 3)) + t / 1000
    return {
        name: (scale[:, None, None, None] * q, jnp.asarray(KEYS[:, : q.shape[1]]))
        for name, q in LAYERS.items()
    }


def scripted_pixels(xt, t):
    """Queries as `scripted` has them, and keys of the same pixels."""
    return {name: (q, q) for name, (q, _) in scripted(xt, t).items()}


ATTENTION = Partial(scripted)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def enlarge(map_, size):
    """Bicubic interpolation with a = -0.75, weight by weight."""

    def weight(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    for axis, new in enumerate(size):
        old = map_.shape[axis]
        lines = np.moveaxis(map_, axis, 0)
        enlarged = np.zeros((new, *lines.shape[1:]))
        for target in range(new):
            centre = (target + 0.5) * old / new - 0.5
            for source in range(-3, old + 3):
                enlarged[target] += weight(centre - source) * lines[min(max(source, 0), old - 1)]
        map_ = np.moveaxis(enlarged, 0, axis)
    return map_


def expected_maps(names, rows, image):
    """The map of each layer, head and token of one image, by loops: (maps, 5, 6, tokens)."""
    maps = []
    for name in names:
        for head in range(LAYERS[name].shape[1]):
            total = 0
            for row in rows:
                scale = 1 + 0.1 * STATES[row, image].mean() + GRID.t[row] / 1000
                q = scale * LAYERS[name][image, head]
                total = total + softmax(q @ KEYS[image, head].T / 2)
            tokens = [enlarge(total[:, i].reshape(SHAPES[name]), SIZE) for i in range(TOKENS)]
            maps.append(np.maximum(np.stack(tokens, -1), 0))
    return np.stack(maps)


def test_maps_are_summed_over_steps_resized_clamped_and_averaged_over_layers_and_heads():
    sums = attention_sums(ATTENTION, STATES, GRID, parts=3)
    maps = merge_maps(sums, SIZE)
    assert maps.shape == (3, 2, *SIZE, TOKENS)
    for part, image in np.ndindex(3, 2):
        expected = expected_maps(("down", "up"), [part], image).mean(0)
        np.testing.assert_allclose(maps[part, image], expected, atol=1e-6)
    whole = merge_maps(attention_sums(ATTENTION, STATES, GRID, middle=True), SIZE)
    expected = expected_maps(("down", "mid", "up"), range(3), 1).mean(0)
    np.testing.assert_allclose(whole[0, 1], expected, atol=1e-6)


def test_a_map_below_0_is_clamped_after_the_sum_over_steps():
    """A point on a dark ground overshoots: the cubic kernel is negative between 1 and 2 pixels."""
    point = np.zeros((1, 1, 4, 4, 1), np.float32)
    point[0, 0, 2, 2] = 1
    resized = module.resize(jnp.asarray(point), (8, 8))
    assert resized.min() < -0.05
    merged = merge_maps({"up": jnp.asarray(point)}, (8, 8))
    np.testing.assert_allclose(merged[0], np.maximum(resized[0, 0], 0), atol=1e-7)


def test_the_bicubic_matrix_has_the_published_weights():
    """Of the kernel with a = -0.75 at a quarter and three quarters of a pixel."""
    weights = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    matrix = bicubic_matrix(6, 12)
    np.testing.assert_allclose(matrix[5, 1:5], weights, atol=1e-12)
    np.testing.assert_allclose(matrix[6, 1:5], weights[::-1], atol=1e-12)
    # The pixel at the edge stands for the two beyond it.
    np.testing.assert_allclose(matrix[0, :2], [1 - sum(weights[:1]), weights[0]], atol=1e-12)
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))


def test_probabilities_of_all_tokens_sum_to_the_steps_of_each_part():
    sums = attention_sums(ATTENTION, STATES, GRID, parts=2)
    for total in sums.values():
        np.testing.assert_allclose(total.sum(-1)[0], 2, atol=1e-5)
        np.testing.assert_allclose(total.sum(-1)[1], 1, atol=1e-5)


def test_heads_and_layers_are_kept_or_averaged():
    sums = attention_sums(ATTENTION, STATES, GRID, middle=True)
    layers = merge_maps(sums, SIZE, keep_layers=True)
    everything = merge_maps(sums, SIZE, keep_layers=True, keep_heads=True)
    assert {name: maps.shape[2] for name, maps in everything.items()} == {
        "down": 2,
        "mid": 2,
        "up": 4,
    }
    for name, maps in everything.items():
        np.testing.assert_allclose(maps.mean(2), layers[name], atol=1e-6)
    two = {name: sums[name] for name in ("down", "mid")}
    heads = merge_maps(two, SIZE, keep_heads=True)
    np.testing.assert_allclose(heads.mean(2), merge_maps(two, SIZE), atol=1e-6)
    with pytest.raises(ValueError, match=r"The layers have \[2, 4\] heads"):
        merge_maps(sums, SIZE, keep_heads=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def projections(net, path, params, inputs):
    """The outputs (b, n, c) of the linear layers of queries and keys of one layer, from Flax."""
    _, state = net.module().apply({"params": params}, *inputs, capture_intermediates=True)
    layer = functools.reduce(lambda node, name: node[name], path, state["intermediates"])
    outputs = [layer[name]["__call__"][0] for name in ("to_q", "to_k")]
    return [output.reshape(inputs[0].shape[0], -1, output.shape[-1]) for output in outputs]


def probabilities(q, k, heads):
    """Of one image, from the outputs (n, c) of the linear layers: (heads, n, m)."""
    q, k = (np.asarray(x).reshape(len(x), heads, -1).swapaxes(0, 1) for x in (q, k))
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))


def test_words_of_a_text_have_the_probabilities_of_the_cross_attention():
    model = smallest_model()
    maps = attention_maps(
        model.unet, model.unet_params, STATES[:1], GRID.split(3)[0], TEXT, keep_layers=True
    )
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    assert set(maps) == {
        path,
        *(f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn2" for i in range(2)),
    }
    modules = ("down_blocks.0.attentions.0", "transformer_blocks.0", "attn2")
    inputs = STATES[0], jnp.full(2, 900), TEXT.states
    q, k = projections(model.unet, modules, model.unet_params, inputs)
    for image in range(2):
        expected = probabilities(q[image], k[image], heads=2).mean(0)
        np.testing.assert_allclose(
            maps[path][image], expected.reshape(*SIZE, TOKENS), rtol=1e-4, atol=1e-6
        )


def test_a_pixel_of_a_pixel_network_looks_where_its_self_attention_does():
    net, params = draw(dataclasses.replace(UNET, num_classes=None))
    xt = jnp.asarray(RNG.standard_normal((1, 2, 8, 8, 1), np.float32))
    pixels = [(0, 0), (5, 2)]
    maps = attention_maps(
        net, params, xt, GRID.split(3)[0], pixels=pixels, middle=True, keep_layers=True
    )
    assert set(maps) == {"down_1.attention_0", "middle.attention_0"} | {
        f"up_1.attention_{i}" for i in range(2)
    }
    inputs = xt[0], jnp.full(2, 900), None, None
    q, k = projections(net, ("down_1", "attention_0"), params, inputs)
    for image in range(2):
        # The layer has 4x4 pixels: (5, 2) lies in its pixel (2, 1).
        looks = probabilities(q[image], k[image], heads=2)[:, [0, 2 * 4 + 1]].reshape(2, 2, 4, 4)
        enlarged = np.array([[enlarge(look, (8, 8)) for look in head] for head in looks])
        expected = np.moveaxis(np.maximum(enlarged, 0).mean(0), 0, -1)
        shown = maps["down_1.attention_0"][image]
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-6)


def test_no_change_of_states_text_parameters_or_pixels_compiles_again():
    model = smallest_model()
    first = GRID.split(3)[0]
    attention_maps(model.unet, model.unet_params, STATES[:1], first, TEXT)
    attention_sums(Partial(scripted_pixels), STATES, GRID, pixels=[(0, 0)])
    before = module._sums._cache_size()
    params = jax.tree.map(lambda x: 2 * x, model.unet_params)
    other = TEXT._replace(states=-TEXT.states)
    attention_maps(model.unet, params, STATES[1:2], GRID.split(3)[1], other)
    attention_sums(Partial(scripted_pixels), STATES, GRID, pixels=[(4, 5)])
    assert module._sums._cache_size() == before


def test_mistakes_are_refused():
    model = smallest_model()
    net, params = draw(dj.BasicUNet(image_size=8, channels=1))

    def maps(options):
        options = {"states": STATES, "grid": GRID, **options}
        return attention_maps(model.unet, model.unet_params, condition=TEXT, **options)

    def maps_of_plain(options):
        return attention_maps(net, params, jnp.zeros((3, 1, 8, 8, 1)), GRID, **options)

    assert_refused(
        maps,
        [
            ({"states": STATES[:2]}, "There are 2 states for the 3 rows of the grid"),
            ({"pixels": [(5, 0)]}, r"Pixel \(5, 0\) is outside of 5x6"),
            ({"pixels": [(0, -1)]}, r"Pixel \(0, -1\) is outside of 5x6"),
        ],
    )
    with pytest.raises(ValueError, match="3 rows of a grid cannot be split into 4 parts"):
        attention_sums(ATTENTION, STATES, GRID, parts=4)
    assert_refused(
        maps_of_plain,
        [
            ({}, "no cross-attention outside of its middle: give pixels .*, or set middle"),
            ({"middle": True}, "no cross-attention: give pixels for self-attention"),
            ({"pixels": [(0, 0)], "middle": True}, "The network has no self-attention: there is"),
        ],
    )
    with pytest.raises(ValueError, match="condition must have 2 rows"):
        bound = bind(ATTENTION, TEXT._replace(states=TEXT.states[:1]))
        attention_sums(bound, STATES, GRID)
    with pytest.raises(ValueError, match="attention over 29 pixels does not fit 5x6 halved any"):
        module.layer_size(29, *SIZE)
