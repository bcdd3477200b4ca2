"""Layers against plain definitions: embedding, dropout, attention, pooling, upsampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import (
    BLOCK,
    CONV_UNET,
    SMALLEST,
    UNET,
    apply,
    by_path,
    draw,
    exact_group_norm,
    inputs,
)

from ddpm_jax.models import conv_unet, layers, unet, unet_blocks
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.conv_unet import TransposedConv
from ddpm_jax.models.layers import (
    dropout,
    max_pool,
    sinusoidal_embedding,
    upsample_nearest,
)


def exact_waves(t, dim, freq_shift):
    frequencies = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2 - freq_shift))
    return np.sin(np.outer(t, frequencies)), np.cos(np.outer(t, frequencies))


def test_sinusoidal_embedding_matches_its_formula():
    integers = np.array([0, 1, 999], np.int32)
    floats = np.array([0.5, 998.25, 3.0], np.float32)
    times = [integers, floats]
    for freq_shift in (0.0, 1.0):
        sines, cosines = exact_waves(np.concatenate(times), 16, freq_shift)
        expected = {
            ("concatenated", False): np.concatenate([sines, cosines], -1),
            ("concatenated", True): np.concatenate([cosines, sines], -1),
            ("interleaved", False): np.stack([sines, cosines], -1).reshape(-1, 16),
        }
        for (layout, flip), value in expected.items():
            options = {"layout": layout, "flip_sin_to_cos": flip, "freq_shift": freq_shift}
            ours = [sinusoidal_embedding(jnp.asarray(t), 16, **options) for t in times]
            ours = np.concatenate(ours)
            np.testing.assert_allclose(ours, value, atol=1e-4, err_msg=str(options))


def test_sinusoidal_embedding_needs_an_even_dim():
    with pytest.raises(ValueError, match="even dim, not 5"):
        sinusoidal_embedding(jnp.zeros(1), 5)


def test_sinusoidal_embedding_needs_a_frequency_below_the_shift():
    with pytest.raises(ValueError, match="of dim 2 needs a freq_shift below 1, not"):
        sinusoidal_embedding(jnp.zeros(1), 2)


def split_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_dropout_masks_depend_on_the_examples_key_alone_and_keep_the_mean():
    x = np.ones((4, 32, 32, 4), np.float32)
    keys = split_keys(4)
    for rate in (0.1, 0.5, 0.9):
        drop = jax.jit(lambda x, keys, rate=rate: dropout(x, rate, keys))
        dropped = np.asarray(drop(x, keys))
        np.testing.assert_array_equal(drop(x, keys[::-1]), dropped[::-1], f"rate {rate}")
        assert len(np.unique(dropped.reshape(4, -1), axis=0)) == 4, rate
        standard_error = np.sqrt(rate * (1 - rate) / x.size)
        assert abs((dropped == 0).mean() - rate) < 5 * standard_error, rate
        np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-3)
        assert abs(dropped.mean() - 1) < 5 * standard_error / (1 - rate), rate
    np.testing.assert_array_equal(drop(x[1:3], keys[1:3]), dropped[1:3])


def test_dropout_without_keys_or_with_rate_0_is_the_identity():
    x = jnp.ones((1, 4, 4, 1))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, split_keys(1)) is x


@pytest.mark.parametrize("net", [UNET, CONV_UNET], ids=["unet", "conv_unet"])
def test_every_dropout_layer_of_a_network_has_its_own_keys(net, monkeypatch):
    params = net.shapes()
    keys = split_keys(2)
    seen = []

    # Keys are computed while tracing, so that `record` can read them.
    def concrete_keys(module, keys):
        with jax.ensure_compile_time_eval():
            return layers.module_keys(module, keys)

    def record(x, rate, keys):
        with jax.ensure_compile_time_eval():
            seen.append(np.asarray(jax.random.key_data(keys)))
        return x

    for module in (unet_blocks, conv_unet):
        monkeypatch.setattr(module, "module_keys", concrete_keys)
        monkeypatch.setattr(module, "dropout", record)
    run = lambda params: net.apply(params, *inputs(net), dropout_keys=keys)  # noqa: E731
    jax.eval_shape(run, params)
    assert len(seen) == sum("conv2/kernel" in path for path in by_path(params))
    assert len(np.unique(np.concatenate(seen), axis=0)) == 2 * len(seen)


def test_dropout_in_a_network_does_not_depend_on_the_batch():
    net, params = draw(dataclasses.replace(BLOCK, dropout=0.5))
    keys = split_keys(4)
    arguments = inputs(net, 4)
    run = lambda keys, arguments: apply(net, params, *arguments, dropout_keys=keys)  # noqa: E731
    full_batch = run(keys, arguments)
    reversed_batch = run(keys[::-1], jax.tree.map(lambda a: a[::-1], arguments))
    np.testing.assert_allclose(full_batch, reversed_batch[::-1], rtol=1e-5, atol=1e-5)
    half_batch = run(keys[1:3], jax.tree.map(lambda a: a[1:3], arguments))
    np.testing.assert_allclose(full_batch[1:3], half_batch, rtol=1e-5, atol=1e-5)
    assert np.abs(full_batch - run(keys[::-1], arguments)).max() > 1e-2


def exact_attention(params, x, head_dim, groups, eps):
    b, h, w, c = x.shape
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    dense = lambda name, value: value @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
    scale, bias = params["group_norm"]["scale"], params["group_norm"]["bias"]
    normed = exact_group_norm(np.asarray(x, np.float64), scale, bias, groups, eps)
    pixels = normed.reshape(b, h * w, c)
    q, k, v = (
        dense(name, pixels).reshape(b, h * w, -1, head_dim) for name in ("to_q", "to_k", "to_v")
    )
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(head_dim)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return x + dense("to_out", mixed.reshape(b, h * w, c)).reshape(x.shape)


def test_self_attention_matches_a_softmax_over_pixels_in_float64():
    rng = np.random.default_rng(4)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    params = {
        name: {"kernel": normal(8, 8) * 0.7, "bias": normal(8)}
        for name in ("to_q", "to_k", "to_v", "to_out")
    }
    params["group_norm"] = {"scale": normal(8), "bias": normal(8)}
    x = normal(2, 3, 4, 8)
    for head_dim in (4, None):
        ours = jax.jit(SelfAttention(head_dim, 4, 1e-6).apply)({"params": params}, x)
        expected = exact_attention(params, x, head_dim or 8, 4, 1e-6)
        case = f"head_dim {head_dim}"
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4, err_msg=case)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="Heads of 3 channels do not divide 8"):
        jax.eval_shape(SelfAttention(3, 4).init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


def test_max_pool_and_nearest_upsampling_match_their_definitions():
    x = np.random.default_rng(5).standard_normal((2, 6, 4, 3), np.float32)
    corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), np.max(corners, axis=0))
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def test_transposed_conv_matches_lax():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    kernel = rng.standard_normal((5, 2, 2, 6), np.float32)
    bias = rng.standard_normal(6, np.float32)
    ours = jax.jit(TransposedConv(6).apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    hwio = kernel.transpose(1, 2, 3, 0)
    expected = jax.lax.conv_transpose(x, hwio, (2, 2), "VALID", transpose_kernel=True)
    np.testing.assert_allclose(ours, np.asarray(expected) + bias, rtol=1e-5, atol=1e-5)


def test_symmetric_padding_sets_the_stride_offset_of_downsampling(monkeypatch):
    """test_winograd.py tests that offset 0 pads all sides, and 1 only right and bottom."""
    offsets = []

    def record(x, features, size, name, *, stride_offset=None, **options):
        if name == "downsample_0":
            offsets.append(stride_offset)
        return layers.conv(x, features, size, name, stride_offset=stride_offset, **options)

    monkeypatch.setattr(unet, "conv", record)
    for symmetric in (False, True):
        two_levels = {"widths": (8, 8), "attention": (False, False)}
        dataclasses.replace(SMALLEST, **two_levels, symmetric_padding=symmetric).shapes()
    assert offsets == [1, 0]
