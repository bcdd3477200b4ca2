"""Layers against plain definitions: norm, embedding, dropout, attention, pooling, upsampling."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import EXPLICIT, ROWS, split
from helpers.nets import BLOCK, CONV_UNET, SMALLEST, UNET, apply, by_path, draw, inputs

from ddpm_jax.models import conv_unet, layers, unet, unet_blocks
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.conv_unet import TransposedConv
from ddpm_jax.models.layers import (
    dropout,
    group_norm,
    group_norm_of_few_kernels,
    max_pool,
    sinusoidal_embedding,
    upsample_nearest,
)


def exact_group_norm(x, scale, bias, groups, eps, xp=np):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, groups, c // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) / xp.sqrt(variance + eps)).reshape(x.shape)
    return normalised * scale[None, None, None] + bias[None, None, None]


def norm_inputs(mean=0.0, spread=0.0, c=8):
    """x, scale and bias. x has standard deviation 1 about channel means of N(mean, spread^2)."""
    rng = np.random.default_rng(2)
    x = mean + spread * rng.standard_normal(c) + rng.standard_normal((2, 16, 16, c))
    scale, bias = rng.standard_normal((2, c)).astype(np.float32)
    return x.astype(np.float32), scale, bias


def test_group_norm_matches_float64_to_1e_5():
    for groups in (1, 4, 8):
        for mean, spread in ((0.0, 0.0), (30.0, 0.0), (0.0, 10.0)):
            x, scale, bias = norm_inputs(mean, spread)
            expected = exact_group_norm(x.astype(np.float64), scale, bias, groups, 1e-6)
            ours = group_norm(*map(jnp.asarray, (x, scale, bias)), groups, 1e-6)
            tolerance = 1e-5 * np.abs(scale).max()
            case = f"{groups} groups, mean {mean}, spread {spread}"
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=case)


def test_group_norm_of_bfloat16_uses_float32_statistics():
    x, scale, bias = norm_inputs(30.0)
    x = jnp.asarray(x, jnp.bfloat16)
    normed = group_norm(x, jnp.asarray(scale), jnp.asarray(bias), 4, 1e-6)
    assert normed.dtype == jnp.bfloat16
    expected = exact_group_norm(np.asarray(x, np.float64), scale, bias, 4, 1e-6)
    np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=2**-8, atol=1e-5)


def values_and_gradients(norm, *arguments):
    """The norm with 4 groups of x (b, h, w, c), scale, bias and offset, and its four gradients."""
    weights = np.random.default_rng(3).standard_normal(arguments[0].shape, np.float32)

    @jax.jit
    def run(x, scale, bias, offset):
        apply = lambda x, scale, bias, offset: norm(x, scale, bias, 4, 1e-6, offset)  # noqa: E731
        out, back = jax.vjp(apply, x, scale, bias, offset)
        return out, *back(jnp.asarray(weights, out.dtype))

    return [np.asarray(result, np.float64) for result in run(*arguments)]


def narrow_norm_arguments(dtype=jnp.bfloat16):
    x, scale, bias = norm_inputs()
    offset = np.random.default_rng(4).standard_normal((2, 8))
    return jnp.asarray(x, dtype), scale, bias, jnp.asarray(offset, dtype)


def test_group_norm_of_few_kernels_matches_group_norm():
    arguments = narrow_norm_arguments(jnp.float32)
    norms = (group_norm_of_few_kernels, group_norm)
    for ours, plain in zip(*(values_and_gradients(n, *arguments) for n in norms), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=3e-6 * np.abs(plain).max())
    x, scale, bias, _ = arguments
    ours, plain = (norm(x, scale, bias, 4, 1e-6) for norm in norms)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


def test_group_norm_of_few_kernels_in_bfloat16_is_as_exact_as_group_norm():
    arguments = narrow_norm_arguments()
    wide = [jnp.asarray(x, jnp.float32) for x in arguments]
    exact = values_and_gradients(group_norm, *wide)
    norms = (group_norm_of_few_kernels, group_norm)
    ours, plain = (values_and_gradients(norm, *arguments) for norm in norms)
    for our, expected, right in zip(ours, plain, exact, strict=True):
        assert np.abs(our - right).max() <= 1.5 * np.abs(expected - right).max()


def test_group_norm_of_few_kernels_of_constants_is_the_bias():
    """Their variance rounds to less than -eps for some constants."""
    x = jnp.broadcast_to(jnp.linspace(1, 200, 64)[:, None, None, None], (64, 5, 5, 8))
    normed = group_norm_of_few_kernels(x, jnp.ones(8), jnp.full(8, 0.5), 4, 1e-6)
    np.testing.assert_allclose(normed, 0.5, atol=0.05)


def test_group_norm_of_few_kernels_works_per_example_and_on_meshes():
    x, scale, bias, offset = narrow_norm_arguments()
    arguments = (x, scale, bias, offset)
    expected = values_and_gradients(group_norm_of_few_kernels, *arguments)

    def norm(x, scale, bias, groups, eps, offset):
        one = lambda x, offset: group_norm_of_few_kernels(  # noqa: E731
            x[None], scale, bias, groups, eps, offset[None]
        )[0]
        return jax.vmap(one)(x, offset)

    def per_shard(x, scale, bias, groups, eps, offset):
        run = lambda x, scale, bias, offset: group_norm_of_few_kernels(  # noqa: E731
            x, scale, bias, groups, eps, offset
        )
        specs = {"in_specs": (ROWS, jax.P(), jax.P(), ROWS), "out_specs": ROWS}
        return jax.shard_map(run, mesh=EXPLICIT, **specs)(x, scale, bias, offset)

    split_arguments = (split(EXPLICIT, x), scale, bias, split(EXPLICIT, offset))
    results = [
        values_and_gradients(norm, *arguments),
        values_and_gradients(group_norm_of_few_kernels, *split_arguments),
        values_and_gradients(per_shard, *split_arguments),
    ]
    for result in results:
        for ours, plain in zip(result, expected, strict=True):
            np.testing.assert_allclose(ours, plain, rtol=0, atol=0.02 * np.abs(plain).max())


def test_the_dtype_chooses_the_form_of_group_norm():
    """float32 is for a CPU, whose bits are those of the sum followed by the norm."""
    x, scale, bias, offset = narrow_norm_arguments(jnp.float32)
    params = {"params": {"scale": scale, "bias": bias}}
    apply = jax.jit(layers.GroupNorm(4, 1e-6).apply)
    plain = jax.jit(lambda x: group_norm(x + offset[:, None, None], scale, bias, 4, 1e-6))
    np.testing.assert_array_equal(apply(params, x, offset), plain(x))
    for dtype in (jnp.float32, jnp.bfloat16):
        program = str(jax.make_jaxpr(apply)(params, x.astype(dtype), offset.astype(dtype)))
        assert ("group_norm_of_few_kernels" in program) == (dtype == jnp.bfloat16)


def test_group_norm_of_a_constant_is_zero():
    x = jnp.full((2, 16, 16, 8), 3.0)
    np.testing.assert_array_equal(group_norm(x, jnp.ones(8), jnp.zeros(8), 4, 1e-6), 0)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        jax.eval_shape(layers.GroupNorm(3).init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


@partial(jax.jit, static_argnums=0)
def norm_gradients(norm, weights, *arguments):
    return jax.grad(lambda *a: jnp.sum(weights * norm(*a)), (0, 1, 2))(*arguments)


def test_group_norm_gradient_matches_the_plain_formula():
    ours = lambda *a: group_norm(*a, 4, 1e-6)  # noqa: E731
    plain = lambda *a: exact_group_norm(*a, 4, 1e-6, jnp)  # noqa: E731
    for mean in (0.0, 30.0):
        arguments = norm_inputs(mean)
        weights = np.random.default_rng(3).standard_normal(arguments[0].shape, np.float32)
        grads = [norm_gradients(norm, weights, *arguments) for norm in (ours, plain)]
        for our, expected in zip(*grads, strict=True):
            tolerance = 3e-4 * np.abs(expected).max()
            case = f"mean {mean}"
            np.testing.assert_allclose(our, expected, rtol=1e-3, atol=tolerance, err_msg=case)


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
    reversed_batch = run(keys[::-1], [a[::-1] for a in arguments])
    np.testing.assert_allclose(full_batch, reversed_batch[::-1], rtol=1e-5, atol=1e-5)
    half_batch = run(keys[1:3], [a[1:3] for a in arguments])
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


@pytest.mark.parametrize("mean", [30.0, 300.0])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_without_a_pilot_far_means_lose_no_more_than_the_rounding_of_x(dtype, mean):
    values = np.random.default_rng(0).standard_normal((2, 16, 16, 32)) + mean
    x = jnp.asarray(values, dtype)
    arguments = jnp.ones(32, jnp.float32), jnp.zeros(32, jnp.float32), 8, 1e-5
    by_group = values.reshape(2, 16, 16, 8, 4)
    axes = {"axis": (1, 2, 4), "keepdims": True}
    exact = (by_group - by_group.mean(**axes)) / by_group.std(**axes)

    def error(normalise):
        normed = np.float64(normalise(x, *arguments).astype(jnp.float32))
        return np.abs(normed - exact.reshape(values.shape)).max()

    assert error(group_norm_of_few_kernels) <= 1.1 * error(group_norm)
