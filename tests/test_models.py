"""Layers against plain definitions; nets: published sizes, frozen paths, init, gradients, precision, errors."""

import dataclasses
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import layers, unet
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet, TransposedConv
from ddpm_jax.models.layers import SelfAttention, dropout, group_norm, max_pool, sinusoidal_embedding, upsample_nearest
from ddpm_jax.models.unet import UNet

UNET = UNet(
    image_size=8,
    channels=1,
    widths=(8, 16),
    attention=(False, True),
    layers_per_level=1,
    head_dim=8,
    num_classes=3,
    groups=4,
)
CONV_UNET = ConvUNet(
    image_size=8, channels=1, widths=(8, 16), time_embedding_dim=8, attention_sizes=(4,), head_dim=8, groups=4
)
TINY = UNet(image_size=4, channels=1, widths=(8,), attention=(False,), layers_per_level=1, head_dim=8, groups=4)
BLOCK = dataclasses.replace(CONV_UNET, image_size=4, widths=(8,), attention_sizes=())
NETS = {"unet": UNET, "conv_unet": CONV_UNET, "basic_unet": BasicUNet(image_size=8, channels=1)}
PATHS = Path(__file__).with_name("parameter_paths.txt")


def random_like(tree, scale=0.15):
    """`tree` with every leaf moved, so that nothing is zero-initialised any more."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + scale * rng.standard_normal(x.shape, np.float32), tree)


def inputs(net, batch=2):
    """xt, t and labels."""
    rng = np.random.default_rng(1)
    xt = jnp.asarray(rng.standard_normal((batch, *net.image_shape), np.float32))
    return xt, jnp.asarray(rng.integers(0, 1000, batch), jnp.int32), jnp.arange(batch, dtype=jnp.int32) % 3


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def apply(net, params, *arguments, **options):
    """`net.apply`, compiled once a net and kind of arguments."""
    return net.apply(params, *arguments, **options)


def loss(net, params):
    """A loss that no symmetry of the net makes flat."""
    return jnp.mean((net.apply(params, *inputs(net)) - 1) ** 2)


def by_path(tree) -> dict[str, np.ndarray]:
    """The leaves by their path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def draw(net):
    """The net with parameters none of which is zero."""
    return net, random_like(net.init(jax.random.key(0)))


@pytest.fixture(scope="module", params=NETS)
def drawn(request):
    """Each of the three nets with parameters none of which is zero."""
    return draw(NETS[request.param])


DDPM_128 = {"widths": (128, 128, 256, 256, 512, 512), "attention": (False, False, False, False, True, False)}
S4 = {"widths": (32, 64, 64), "attention": (False, True, True), "head_dim": 8}
BUTTERFLIES = {"widths": (64, 128, 128, 256), "attention": (False, False, True, True), "head_dim": 8}
CIFAR10 = {"widths": (128, 256, 256, 256), "attention": (False, True, False, False)}


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (ConvUNet(image_size=32, channels=1), 33_260_417),
        (ConvUNet(image_size=32, channels=3), 33_261_827),
        (BasicUNet(image_size=28, channels=1), 309_057),
        (UNet(image_size=28, channels=1, **S4), 1_707_009),
        (UNet(image_size=32, channels=3, **BUTTERFLIES), 18_536_323),
        (UNet(image_size=32, channels=3, **CIFAR10), 35_746_307),
        (UNet(image_size=128, channels=3, **DDPM_128), 113_673_219),
        (UNet(image_size=256, channels=3, **DDPM_128), 113_673_219),
    ],
)
def test_parameter_counts_are_the_published_ones(net, count):
    assert net.parameter_count() == count


def test_parameter_paths_and_shapes_are_frozen(tmp_path):
    """Checkpoints depend on them: after a change that is meant, copy the file named in the message over PATHS."""
    lines = []
    for name, net in NETS.items():
        leaves = by_path(net.init(jax.random.key(0)))
        lines += [f"{name}/{path} {'x'.join(map(str, leaf.shape))}" for path, leaf in sorted(leaves.items())]
    found = tmp_path / PATHS.name
    found.write_text("\n".join(lines) + "\n")
    assert found.read_text() == PATHS.read_text(), f"if this is meant: cp {found} {PATHS}"


# Layers


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
    monkeypatch.setattr(unet, "dropout", recorder)
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


@partial(jax.jit, static_argnums=0)
def captured(net, params) -> dict:
    """What every submodule returned, by path, and the net's output."""
    variables = {"params": params}
    out, state = net.module().apply(variables, *inputs(net), None, capture_intermediates=True)
    is_output = lambda value: isinstance(value, tuple)  # noqa: E731
    leaves = jax.tree.leaves_with_path(state["intermediates"], is_leaf=is_output)
    return {"": out} | {jax.tree_util.keystr(path[:-1], simple=True, separator="/"): v[0] for path, v in leaves}


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


# Initialisation


def test_a_fresh_ddpm_net_is_the_identity_in_every_branch_and_outputs_zero():
    params = UNET.init(jax.random.key(0))
    states = captured(UNET, params)
    np.testing.assert_array_equal(states[""], 0)
    np.testing.assert_array_equal(states["down_0/resnet_0"], states["conv_in"])  # conv2 starts at 0
    np.testing.assert_array_equal(states["middle"], states["down_1"][-1])
    np.testing.assert_array_equal(states["down_1/attention_0"], states["down_1/resnet_0"])  # to_out starts at 0
    assert np.abs(states["up_0"][-1]).max() > 0


def check_uniform(name, value, bound):
    assert np.abs(value).max() <= bound * (1 + 1e-6), name
    if value.size >= 64:
        assert np.abs(value).max() > 0.9 * bound, name
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < 3 / np.sqrt(value.size), name
        assert abs(value.mean()) < 4 * bound / np.sqrt(3 * value.size), name


def fans(kernel):
    window = np.prod(kernel.shape[:-2], dtype=int)
    return window * kernel.shape[-2], window * kernel.shape[-1]


def test_ddpm_kernels_are_fan_avg_uniform():
    zero = ("conv2/kernel", "to_out/kernel", "conv_out/kernel")
    for path, leaf in by_path(UNET.init(jax.random.key(0))).items():
        if path == "class_embedding/embedding":
            assert abs(leaf.std() - 1) < 4 / np.sqrt(2 * leaf.size)
        elif path.endswith("kernel") and not path.endswith(zero):
            check_uniform(path, leaf, np.sqrt(6 / sum(fans(leaf))))
        else:
            np.testing.assert_array_equal(leaf, 1 if path.endswith("scale") else 0, path)


@pytest.mark.parametrize(
    "net", [CONV_UNET, NETS["basic_unet"], dataclasses.replace(UNET, init_scheme="torch")], ids=str
)
def test_torch_kernels_and_biases_are_within_one_over_root_fan_in(net):
    leaves = by_path(net.init(jax.random.key(0)))
    for path, kernel in leaves.items():
        if path.endswith("kernel"):
            transposed = isinstance(net, ConvUNet) and path.startswith("upsample")
            fan_in = 4 * kernel.shape[-1] if transposed else fans(kernel)[0]
            check_uniform(path, kernel, fan_in**-0.5)
            check_uniform(path, leaves[path.replace("kernel", "bias")], fan_in**-0.5)


def test_init_depends_on_the_key_and_each_leaf_on_its_path_alone():
    ours, again, other = (by_path(UNET.init(jax.random.key(seed))) for seed in (0, 0, 1))
    without = by_path(dataclasses.replace(UNET, num_classes=None).init(jax.random.key(0)))
    assert set(ours) - set(without) == {"class_embedding/embedding"}
    for path, leaf in ours.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, again[path])
        np.testing.assert_array_equal(leaf, without.get(path, leaf))
        assert np.array_equal(leaf, other[path]) == (np.ptp(leaf) == 0), path
    kernels = [leaf.tobytes() for leaf in ours.values() if np.ptp(leaf)]
    assert len(set(kernels)) == len(kernels)


def test_init_works_under_jit():
    eager, jitted = TINY.init(jax.random.key(3)), jax.jit(TINY.init)(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)


# Whole nets


def test_jit_and_eager_agree_in_output_and_gradient():
    net, params = draw(BLOCK)
    transforms = (lambda f: f, jax.jit)
    eager, jitted = (transform(jax.value_and_grad(lambda p: loss(net, p)))(params) for transform in transforms)
    np.testing.assert_allclose(eager[0], jitted[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), eager[1], jitted[1])


def test_gradients_reach_every_parameter(drawn):
    net, params = drawn
    for path, grad in by_path(jax.jit(jax.grad(lambda p: loss(net, p)))(params)).items():
        if path == "class_embedding/embedding":
            grad = grad[:2]  # the labels in the batch
        if path.endswith("to_k/bias"):  # softmax does not see it
            continue
        a_channel = np.abs(grad).max(axis=tuple(range(grad.ndim - 1)))
        relu = path.startswith("time_linear/")  # a ReLU may be off for a whole batch
        assert (np.any if relu else np.all)(a_channel > 1e-7), path


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_gives_float32_close_to_float32s(drawn, dtype, tolerance):
    net, params = drawn
    full, half = (apply(net, params, *inputs(net), dtype=d) for d in ("float32", dtype))
    assert half.dtype == jnp.float32
    error = np.abs(half - full).max() / np.abs(full).max()
    assert 0 < error < tolerance


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_nets_keep_the_shape_of_28_pixel_grey_and_rgb(name, channels):
    attention = {"attention_sizes": (14,)} if name == "conv_unet" else {}
    net = dataclasses.replace(NETS[name], image_size=28, channels=channels, **attention)
    result = jax.eval_shape(lambda key: net.apply(net.init(key), *inputs(net)), jax.random.key(0))
    assert result.shape == (2, 28, 28, channels)
    assert result.dtype == jnp.float32


def test_time_changes_every_nets_output_but_the_basic_ones(drawn):
    net, params = drawn
    xt, t, labels = inputs(net)
    change = np.abs(
        apply(net, params, xt, t, labels, dtype="float32") - apply(net, params, xt, t // 2, labels, dtype="float32")
    )
    assert (change.max() > 1e-3) == (not isinstance(net, BasicUNet))


def test_time_may_be_float():
    net, params = draw(BLOCK)
    xt, t, _ = inputs(net)
    np.testing.assert_allclose(apply(net, params, xt, t.astype(jnp.float32)), apply(net, params, xt, t), rtol=1e-6)


def test_labels_change_the_output_and_cannot_be_left_out():
    net, params = draw(UNET)
    xt, t, labels = inputs(net)
    run = lambda labels: apply(net, params, xt, t, labels, dtype="float32")  # noqa: E731
    change = np.abs(run(labels) - run(labels.at[1].set(2)))
    assert change[0].max() < 1e-6 < 1e-3 < change[1].max()
    with pytest.raises(ValueError, match="made for 3 classes: give it labels"):
        net.apply(params, xt, t)


HIDING = dataclasses.replace(UNET, label_dropout=0.25)


def test_a_net_that_hides_labels_knows_one_more_which_is_said_by_minus_1_or_by_nothing():
    net, params = draw(HIDING)
    assert params["class_embedding"]["embedding"].shape[0] == 4
    xt, t, labels = inputs(net)
    unsaid = apply(net, params, xt, t)
    np.testing.assert_array_equal(apply(net, params, xt, t, jnp.full(2, -1)), unsaid)
    mixed = apply(net, params, xt, t, labels.at[0].set(-1))
    np.testing.assert_allclose(mixed[0], unsaid[0], atol=1e-6)
    assert np.abs(mixed[1] - unsaid[1]).max() > 1e-3
    rows = params["class_embedding"]["embedding"]
    moved = params | {"class_embedding": {"embedding": rows.at[3].add(1.0)}}
    np.testing.assert_array_equal(apply(net, moved, xt, t, labels), apply(net, params, xt, t, labels))
    assert np.abs(apply(net, moved, xt, t) - unsaid).max() > 1e-3


def test_labels_are_hidden_by_their_share_where_there_are_keys_and_only_there():
    net, count = HIDING, 4000
    labels, keys = jnp.arange(count) % 3, jax.random.split(jax.random.key(0), count)
    hidden = net._hide(labels, keys, count)
    share = float(jnp.mean(hidden == 3))
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_array_equal(jnp.where(hidden == 3, labels, hidden), labels)
    assert all(abs(float(jnp.mean(hidden[i::3] == 3)) - 0.25) < 0.06 for i in range(3))
    np.testing.assert_array_equal(net._hide(labels, None, count), labels)
    np.testing.assert_array_equal(net._hide(labels[7:9], keys[7:9], 2), hidden[7:9])
    assert jnp.any(net._hide(labels, jax.random.split(jax.random.key(1), count), count) != hidden)


def test_training_hides_labels_by_the_dropout_keys():
    net, params = draw(HIDING)
    xt, t, labels = inputs(net, 8)
    keys = jax.random.split(jax.random.key(3), 8)
    hidden = net._hide(labels, keys, 8) == 3
    assert 0 < hidden.sum() < 8
    found = apply(net, params, xt, t, labels, dropout_keys=keys)
    np.testing.assert_allclose(found, apply(net, params, xt, t, jnp.where(hidden, -1, labels)), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": None, "label_dropout": 0.1}, "label_dropout hides labels, which this net does not have"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), not 1.0"),
        ({"label_dropout": -0.1}, "label_dropout must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_wrong_settings_of_labels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNET, **settings)


def test_image_sizes_that_do_not_fit_name_those_that_do():
    for kind, options in ((UNet, {}), (ConvUNet, {}), (BasicUNet, {})):
        unit = {UNet: 8, ConvUNet: 16, BasicUNet: 4}[kind]
        with pytest.raises(ValueError, match=f"multiple of {unit}, such as {3 * unit} or {4 * unit}"):
            kind(image_size=3 * unit + 2, channels=1, **options)
        with pytest.raises(ValueError, match=f"such as {unit}$"):
            kind(image_size=unit // 2, channels=1, **options)


def test_hyperparameters_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match="attention names 1 levels, but widths has 4"):
        UNet(image_size=32, channels=3, attention=(True,))
    with pytest.raises(ValueError, match=r"no level has size 7 for attention; the sizes are \[32, 16, 8, 4, 2\]"):
        ConvUNet(image_size=32, channels=3, attention_sizes=(7,))
    for kind in (UNet, ConvUNet):
        with pytest.raises(ValueError, match="dropout must be in"):
            kind(image_size=32, channels=3, dropout=1.0)


def test_every_submodule_has_a_name_of_ours():
    """A name that Flax makes up, such as Conv_0, would change with the order of calls."""
    for net in NETS.values():
        assert isinstance(net.module(), nn.Module)
        for path in by_path(net.init(jax.random.key(0))):
            assert path == path.lower(), path
