"""Layers against plain definitions: group norm, embedding, dropout, attention, pooling, convolutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import BLOCK, CONV_UNET, TINY, UNET, apply, by_path, captured, draw, inputs

from ddpm_jax.models import layers, unet_blocks
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.conv_unet import TransposedConv
from ddpm_jax.models.layers import dropout, group_norm, max_pool, sinusoidal_embedding, upsample_nearest


def exact_group_norm(x, scale, bias, groups, eps, xp=np):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, groups, c // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 2, 4), keepdims=True)
    normal = ((grouped - mean) / xp.sqrt(variance + eps)).reshape(x.shape)
    return normal * scale[None, None, None] + bias[None, None, None]


def norm_inputs(mean=0.0, spread=0.0, c=8):
    """x of std 1 about `mean`, channels apart by `spread`; scale, bias."""
    rng = np.random.default_rng(2)
    x = mean + spread * rng.standard_normal(c) + rng.standard_normal((2, 16, 16, c))
    return x.astype(np.float32), *rng.standard_normal((2, c)).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (30.0, 0.0), (0.0, 10.0)])
def test_group_norm_is_float64s_to_1e_5(groups, mean, spread):
    x, scale, bias = norm_inputs(mean, spread)
    wanted = exact_group_norm(x.astype(np.float64), scale, bias, groups, 1e-6)
    ours = group_norm(*map(jnp.asarray, (x, scale, bias)), groups, 1e-6)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(scale).max())


def test_group_norm_of_bfloat16_has_float32_statistics():
    x, scale, bias = norm_inputs(30.0)
    x = jnp.asarray(x, jnp.bfloat16)
    normed = group_norm(x, jnp.asarray(scale), jnp.asarray(bias), 4, 1e-6)
    assert normed.dtype == jnp.bfloat16
    wanted = exact_group_norm(np.asarray(x, np.float64), scale, bias, 4, 1e-6)
    np.testing.assert_allclose(np.asarray(normed, np.float64), wanted, rtol=2**-8, atol=1e-5)


def test_group_norm_eps_and_groups_that_do_not_divide():
    x, ones, zeros = jnp.full((1, 2, 2, 4), 3.0), jnp.ones(4), jnp.zeros(4)
    np.testing.assert_array_equal(group_norm(x, ones, zeros, 2, 1e-5), 0)  # no variance: 0, not NaN
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        layers.GroupNorm(3).init(jax.random.key(0), x)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_norm_gradient_is_the_plain_formulas(mean):
    arguments = tuple(map(jnp.asarray, norm_inputs(mean)))
    weights = jnp.asarray(np.random.default_rng(3).standard_normal(arguments[0].shape, np.float32))
    ours = jax.grad(lambda *a: jnp.sum(weights * group_norm(*a, 4, 1e-6)), (0, 1, 2))(*arguments)
    plain = jax.grad(lambda *a: jnp.sum(weights * exact_group_norm(*a, 4, 1e-6, jnp)), (0, 1, 2))(*arguments)
    for our, wanted in zip(ours, plain, strict=True):
        np.testing.assert_allclose(our, wanted, rtol=1e-3, atol=3e-4 * np.abs(wanted).max())


def exact_waves(t, dim, freq_shift):
    frequencies = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2 - freq_shift))
    return np.sin(np.outer(t, frequencies)), np.cos(np.outer(t, frequencies))


@pytest.mark.parametrize("freq_shift", [0.0, 1.0])
@pytest.mark.parametrize("t", [np.array([0, 1, 999], np.int32), np.array([0.5, 998.25], np.float32)])
def test_sinusoidal_embedding_is_the_formula(t, freq_shift):
    sines, cosines = exact_waves(t, 16, freq_shift)
    wanted = {
        ("concatenated", False): np.concatenate([sines, cosines], -1),
        ("concatenated", True): np.concatenate([cosines, sines], -1),
        ("interleaved", False): np.stack([sines, cosines], -1).reshape(-1, 16),
    }
    for (layout, flip), value in wanted.items():
        options = {"layout": layout, "flip_sin_to_cos": flip, "freq_shift": freq_shift}
        np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(t), 16, **options), value, atol=1e-4)


def test_sinusoidal_embedding_needs_an_even_dim():
    with pytest.raises(ValueError, match="even dim, not 5"):
        sinusoidal_embedding(jnp.zeros(1), 5)


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_dropout_masks_are_each_examples_own():
    x, keys = jnp.ones((6, 4, 4, 8)), keys_of(6)
    whole = dropout(x, 0.3, keys)
    parts = [dropout(x[i : i + 2], 0.3, keys[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    assert len(np.unique(np.asarray(whole).reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((4, 64, 64, 4))
    dropped = np.asarray(dropout(x, rate, keys_of(4)))
    spread = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((dropped == 0).mean() - rate) < 5 * spread
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-3)
    assert abs(dropped.mean() - 1) < 5 * spread / (1 - rate)


def test_dropout_without_keys_or_rate_is_identity():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, keys_of(1)), x)


@pytest.mark.parametrize("net", [UNET, CONV_UNET], ids=["unet", "conv_unet"])
def test_every_dropout_of_a_net_has_keys_of_its_own(net, monkeypatch):
    from ddpm_jax.models import conv_unet

    seen = []
    recorder = lambda x, rate, keys: (seen.append(keys), x)[1]  # noqa: E731
    monkeypatch.setattr(unet_blocks, "dropout", recorder)
    monkeypatch.setattr(conv_unet, "dropout", recorder)

    def record(keys):
        net.apply(params, *inputs(net), dropout_keys=keys)
        return jax.tree.map(jax.random.key_data, seen)

    params = net.init(jax.random.key(0))
    seen.clear()
    keys = np.concatenate(jax.jit(record)(keys_of(2)))
    assert len(seen) == sum("conv2/kernel" in path for path in by_path(params))
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_dropout_in_a_net_does_not_depend_on_the_batch():
    net, params = draw(dataclasses.replace(BLOCK, dropout=0.5))
    keys, arguments = keys_of(4), inputs(net, 4)
    run = lambda keys, arguments: apply(net, params, *arguments, dropout_keys=keys)  # noqa: E731
    whole = run(keys, arguments)
    halves = [run(keys[half], [a[half] for a in arguments]) for half in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(whole, np.concatenate(halves), rtol=1e-5, atol=1e-5)
    assert np.abs(whole - run(keys[::-1], arguments)).max() > 1e-2


def exact_attention(params, x, head_dim, groups, eps):
    b, h, w, c = x.shape
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    affine = lambda name, value: value @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
    scale, bias = params["group_norm"]["scale"], params["group_norm"]["bias"]
    normed = exact_group_norm(np.asarray(x, np.float64), scale, bias, groups, eps)
    pixels = normed.reshape(b, h * w, c)
    q, k, v = (affine(name, pixels).reshape(b, h * w, -1, head_dim) for name in ("to_q", "to_k", "to_v"))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(head_dim)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return x + affine("to_out", mixed.reshape(b, h * w, c)).reshape(x.shape)


@pytest.mark.parametrize("head_dim", [4, None])
def test_self_attention_is_a_softmax_over_pixels(head_dim):
    rng = np.random.default_rng(4)
    numbers = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    params = {name: {"kernel": numbers(8, 8) * 0.7, "bias": numbers(8)} for name in ("to_q", "to_k", "to_v", "to_out")}
    params["group_norm"] = {"scale": numbers(8), "bias": numbers(8)}
    x = numbers(2, 3, 4, 8)
    ours = SelfAttention(head_dim, 4, 1e-6).apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(x))
    np.testing.assert_allclose(ours, exact_attention(params, x, head_dim or 8, 4, 1e-6), rtol=2e-4, atol=2e-4)


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ValueError, match="heads of 3 channels do not divide 8"):
        SelfAttention(3, 4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


def test_pooling_and_upsampling_are_their_definitions():
    x = np.random.default_rng(5).standard_normal((2, 6, 4, 3), np.float32)
    quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), np.max(quarters, axis=0))
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def test_transposed_conv_is_laxs():
    rng = np.random.default_rng(6)
    x, kernel, bias = (rng.standard_normal(shape, np.float32) for shape in ((2, 3, 4, 5), (5, 2, 2, 6), (6,)))
    ours = TransposedConv(6).apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(x))
    hwio = kernel.transpose(1, 2, 3, 0)
    wanted = jax.lax.conv_transpose(x, hwio, (2, 2), "VALID", transpose_kernel=True)
    np.testing.assert_allclose(ours, wanted + bias[None, None, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("symmetric", "padding"), [(False, (0, 1)), (True, (1, 1))])
def test_downsampling_pads_as_it_says(symmetric, padding):
    two_levels = {"widths": (8, 8), "attention": (False, False)}
    net, params = draw(dataclasses.replace(TINY, **two_levels, symmetric_padding=symmetric))
    states = captured(net, params)
    assert states["downsample_0"].shape == (2, 2, 2, 8)
    padded = np.pad(states["down_0"][-1], ((0, 0), padding, padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    conv = {name: np.asarray(leaf) for name, leaf in params["downsample_0"].items()}
    wanted = np.einsum("bhwcij,ijco->bhwo", windows, conv["kernel"]) + conv["bias"][None, None, None]
    np.testing.assert_allclose(states["downsample_0"], wanted, rtol=1e-4, atol=1e-4)
