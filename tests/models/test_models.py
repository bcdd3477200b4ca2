"""Whole networks: published sizes, frozen paths, shapes, gradients, precision, time, errors."""

import dataclasses
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError
from helpers.meshes import EXPLICIT, split
from helpers.nets import (
    BLOCK,
    CONV_UNET,
    NETS,
    SMALLEST,
    TINY,
    TWO_LEVELS,
    UNET,
    apply,
    by_path,
    draw,
    inputs,
)
from helpers.refusals import assert_refused
from jax import export

from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.unet import UNet

PATHS = Path(__file__).parents[1] / "parameter_paths.txt"

COMPILED = NETS | {"unet": TWO_LEVELS}


@pytest.fixture(scope="module", params=COMPILED)
def drawn(request):
    """Each of the three networks, small, with its parameters, none of them zero."""
    return draw(COMPILED[request.param])


@partial(jax.jit, static_argnums=0)
def run(net, params, xt, t, labels):
    """The output, and the gradient of a loss that no symmetry of the network makes flat."""

    def loss(params):
        out = net.apply(params, xt, t, labels)
        return jnp.mean((out - 1) ** 2), out

    grads, out = jax.grad(loss, has_aux=True)(params)
    return out, grads


CORRUPTION_TOY = {"widths": (32, 64, 64), "attention": (False, True, True), "head_dim": 8}


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (BasicUNet(image_size=28, channels=1), 309_057),
        (UNet(image_size=28, channels=1, **CORRUPTION_TOY), 1_707_009),
    ],
)
def test_parameter_counts_are_the_published_ones(net, count):
    """test_configs.py has those of the networks of all recipes."""
    assert net.parameter_count() == count


def test_parameter_paths_and_shapes_are_frozen(tmp_path):
    """Checkpoints depend on them. After an intended change, run the command in the message."""
    lines = []
    for name, net in NETS.items():
        leaves = jax.tree.leaves_with_path(net.shapes())
        path_text = partial(jax.tree_util.keystr, simple=True, separator="/")
        shapes = {path_text(path): "x".join(map(str, leaf.shape)) for path, leaf in leaves}
        lines += [f"{name}/{path} {shape}" for path, shape in sorted(shapes.items())]
    current = tmp_path / PATHS.name
    current.write_text("\n".join(lines) + "\n")
    assert current.read_text() == PATHS.read_text(), f"If this is intended: cp {current} {PATHS}"


def test_gradients_reach_every_parameter(drawn):
    net, params = drawn
    _, grads = run(net, params, *inputs(net))
    for path, grad in by_path(grads).items():
        if path == "class_embedding/embedding":
            grad = grad[:2]  # The batch has only labels 0 and 1.
        if path.endswith("to_k/bias"):
            continue  # The softmax is invariant to this bias.
        per_channel = np.abs(grad).max(axis=tuple(range(grad.ndim - 1)))
        # A ReLU may be off for a whole batch.
        any_or_all = np.any if path.startswith("time_linear/") else np.all
        assert any_or_all(per_channel > 1e-7), path


def test_half_precision_outputs_are_float32_and_close_to_the_full_precision_ones(drawn):
    net, params = drawn
    full, _ = run(net, params, *inputs(net))
    tolerances = {"bfloat16": 0.05}
    if net is TWO_LEVELS:
        tolerances["float16"] = 0.01
    for dtype, tolerance in tolerances.items():
        half = apply(net, params, *inputs(net), dtype=dtype)
        assert half.dtype == jnp.float32
        error = np.abs(half - full).max() / np.abs(full).max()
        assert 0 < error < tolerance, dtype


def test_t_changes_the_output_of_every_network_but_basic_unet(drawn):
    net, params = drawn
    xt, t, labels = inputs(net)
    half_t = jnp.asarray(np.asarray(t) // 2)
    output, _ = run(net, params, xt, t, labels)
    other_output, _ = run(net, params, xt, half_t, labels)
    change = np.abs(np.asarray(output) - np.asarray(other_output))
    assert (change.max() > 1e-3) == (not isinstance(net, BasicUNet))


def output_shapes(net):
    """The shapes of the output and the variables, without computing them."""
    init = lambda key: net.module().init_with_output(key, *inputs(net), None)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


def test_networks_keep_the_shape_of_28_pixel_rgb_images():
    for name, net in COMPILED.items():
        attention = {"attention_sizes": (14,)} if name == "conv_unet" else {}
        net = dataclasses.replace(net, image_size=28, channels=3, **attention)
        result, _ = output_shapes(net)
        assert (result.shape, result.dtype) == ((2, 28, 28, 3), jnp.float32), name


def test_float_t_equals_integer_t():
    net, params = draw(BLOCK)
    xt, t, _ = inputs(net)
    from_float = apply(net, params, xt, t.astype(jnp.float32))
    np.testing.assert_allclose(from_float, apply(net, params, xt, t), rtol=1e-6)


def test_a_fourier_network_divides_by_t_in_float32_under_half_precision():
    net, params = draw(dataclasses.replace(SMALLEST, time_embedding="fourier"))
    # With a zero time embedding, t enters only through the division of the output.
    params = params | {"time_linear_2": jax.tree.map(np.zeros_like, params["time_linear_2"])}
    xt, _, _ = inputs(net)
    outputs = []
    for t in (1000, 1001):
        output = apply(net, params, xt, np.full(2, t, np.int32), dtype="bfloat16")
        outputs.append(t * np.asarray(output))
    np.testing.assert_allclose(*outputs, rtol=1e-5)


SKIP = {
    "channels": 3,
    "widths": (4, 4, 4),
    "attention": (False,) * 3,
    "groups": None,
    "head_dim": None,
}


@pytest.mark.parametrize(
    ("down", "up", "channels", "learned_variance"),
    [
        (("skip", "conv", "resnet"), ("skip", "skip", "conv"), 1, True),
        (("conv", "resnet", "skip"), ("skip", "skip", "skip"), 3, False),
    ],
)
def test_skip_levels_work_if_all_finer_levels_are_skip_too(down, up, channels, learned_variance):
    settings = SKIP | {"channels": channels, "learned_variance": learned_variance}
    net = dataclasses.replace(UNET, **settings, down_kinds=down, up_kinds=up)
    result, variables = output_shapes(net)
    assert result.shape == (2, 8, 8, net.out_channels)
    bias = variables["params"]["up_picture_1"]["bias"]
    assert jax.tree.leaves(bias)[0].shape == (net.out_channels,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"down_kinds": ("conv", "skip", "skip")},
            "down_kinds: all levels finer than a skip level must be skip too",
        ),
        ({"up_kinds": ("conv", "skip", "skip")}, "up_kinds: all levels finer than a skip level"),
        ({"up_kinds": ("skip", "resnet", "skip")}, "up_kinds: all levels finer than a skip level"),
        ({"widths": (2, 4, 4)}, r"widths of at least 4, not \(2, 4, 4\)"),
        ({"widths": (2, 4, 4), "groups": 2, "down_kinds": ("skip",) * 3}, "widths of at least 4"),
    ],
)
def test_invalid_mixes_of_skip_levels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNET, **SKIP | settings)


def test_invalid_image_sizes_are_refused_with_the_nearest_valid_ones():
    for kind, unit in {UNet: 8, ConvUNet: 16, BasicUNet: 4}.items():
        message = f"multiple of {unit}, such as {3 * unit} or {4 * unit}"
        with pytest.raises(ValueError, match=message):
            kind(image_size=3 * unit + 2, channels=1)
        with pytest.raises(ValueError, match=rf"such as {unit}\.$"):
            kind(image_size=unit // 2, channels=1)
        both = f"such as a height of {unit} and a width of {3 * unit} or {4 * unit}"
        with pytest.raises(ValueError, match=f"Image size {unit}x{3 * unit + 2} .* {both}"):
            kind(image_size=(unit, 3 * unit + 2), channels=1)
    with pytest.raises(ValueError, match=r"a height of 8 or 12 and a width of 4\.$"):
        ImageAutoencoder(image_size=(9, 4), channels=3)


def test_images_that_a_network_cannot_halve_are_refused():
    """They ended in an error of a concatenation."""
    for net in (TWO_LEVELS, CONV_UNET, BasicUNet(image_size=8, channels=1)):
        xt = jnp.zeros((1, 8, 9, net.channels))
        with pytest.raises(ValueError, match="Image size 8x9 does not fit a network that halves"):
            net.apply(net.shapes(), xt, jnp.zeros(1, jnp.int32))


def test_images_of_another_kind_are_refused(monkeypatch):
    # The type check that is on in tests would refuse them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    xt = jnp.zeros((1, 8, 8, TINY.channels))
    cases = [
        (xt.astype(jnp.uint8), r"xt must be floats, not uint8"),
        (jnp.concatenate([xt, xt], -1), f"takes images of {TINY.channels} channels, not "),
    ]
    t = jnp.zeros(1, jnp.int32)
    assert_refused(lambda images: TINY.apply(TINY.shapes(), images, t), cases)


def test_lists_of_settings_are_tuples(monkeypatch):
    """A network is hashed, and a list cannot be."""
    # The type check that is on in tests would refuse them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    settings = {"widths": [8, 8], "attention": [False, True]}
    net = dataclasses.replace(TINY, **settings)
    same = dataclasses.replace(TINY, **{name: tuple(each) for name, each in settings.items()})
    assert net == same
    assert hash(net) == hash(same)
    assert net.parameter_count() == same.parameter_count()


def test_a_square_is_the_same_size_in_one_number_or_two():
    net = dataclasses.replace(TINY, image_size=(8, 8))
    assert net == dataclasses.replace(TINY, image_size=8)
    assert net.image_shape == (8, 8, 1)
    assert dataclasses.replace(TINY, image_size=(8, 12), channels=5).image_shape == (8, 12, 5)


def transposed(net, params):
    """The network and parameters whose outputs for transposed images are those of `net`."""

    def swap(path, leaf):
        if leaf.ndim != 4:
            return leaf
        is_transposed_conv = leaf.shape[1:3] == (2, 2)
        return leaf.swapaxes(1, 2) if is_transposed_conv else leaf.swapaxes(0, 1)

    height, width, _ = net.image_shape
    changes = {"image_size": (width, height)}
    if isinstance(net, ConvUNet):
        changes["attention_sizes"] = tuple(size * width // height for size in net.attention_sizes)
    return dataclasses.replace(net, **changes), jax.tree.map_with_path(swap, params)


@pytest.mark.parametrize("name", COMPILED)
def test_transposed_images_have_transposed_outputs(name):
    net, params = draw(dataclasses.replace(COMPILED[name], image_size=(8, 16), channels=2))
    xt, t, labels = inputs(net)
    out = apply(net, params, xt, t, labels)
    assert out.shape == (2, 8, 16, 2)
    turned, turned_params = transposed(net, params)
    turned_out = apply(turned, turned_params, xt.swapaxes(1, 2), t, labels)
    np.testing.assert_allclose(turned_out.swapaxes(1, 2), out, rtol=1e-3, atol=1e-4)


def test_invalid_hyperparameters_are_refused():
    with pytest.raises(ValueError, match="attention names 1 levels, but widths has 4"):
        UNet(image_size=32, channels=3, attention=(True,))
    message = r"No level has size 7 for attention: the sizes are \[32, 16, 8, 4, 2\]"
    with pytest.raises(ValueError, match=message):
        ConvUNet(image_size=32, channels=3, attention_sizes=(7,))
    for widths in ((), (0, 64)):
        with pytest.raises(ValueError, match="at least one level, of at least 1 channel"):
            ConvUNet(image_size=32, channels=3, widths=widths)
    for kind in (UNet, ConvUNet):
        with pytest.raises(ValueError, match="dropout must be in"):
            kind(image_size=32, channels=3, dropout=1.0)


def test_every_submodule_is_named_explicitly():
    """Flax's automatic names, such as Conv_0, would change with the order of calls."""
    for net in NETS.values():
        assert isinstance(net.module(), nn.Module)
        for path in by_path(net.shapes()):
            assert path == path.lower(), path


def test_a_parameter_of_another_shape_is_refused():
    """One number per layer would be broadcast to its channels."""
    params = SMALLEST.shapes()
    params["conv_in"] |= {"bias": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ScopeParamShapeError, match=r"bias.*conv_in"):
        jax.eval_shape(SMALLEST.apply, params, *inputs(SMALLEST))


VARIANTS = NETS | {
    "unet": dataclasses.replace(TWO_LEVELS, dropout=0.1, label_dropout=0.1),
    "resnet": dataclasses.replace(
        TINY,
        image_size=8,
        widths=(8, 8),
        attention=(False, False),
        modulation="scale_shift",
        down_kinds=("resnet",) * 2,
        up_kinds=("resnet",) * 2,
        time_embedding="learned",
        timesteps=1000,
    ),
    "skip": dataclasses.replace(
        TWO_LEVELS,
        num_classes=None,
        groups=None,
        attention=(False, False),
        down_kinds=("skip",) * 2,
        up_kinds=("skip",) * 2,
        time_embedding="fourier",
    ),
}


@pytest.mark.parametrize("net", VARIANTS.values(), ids=VARIANTS)
def test_networks_and_their_gradients_keep_explicit_sharding(net):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), net.shapes())
    params = split(EXPLICIT, zeros, jax.P())
    xt, t, labels = split(EXPLICIT, inputs(net))
    keys = split(EXPLICIT, jax.random.split(jax.random.key(0), 2))

    def loss(params, xt):
        out = net.apply(params, xt, t, labels, dropout_keys=keys)
        return jnp.sum(out**2), out

    grads, out = jax.eval_shape(jax.grad(loss, (0, 1), has_aux=True), params, xt)
    assert out.sharding.spec[0] == "data"
    params_grad, xt_grad = grads
    assert xt_grad.sharding.spec[0] == "data"
    assert all(grad.sharding.is_fully_replicated for grad in jax.tree.leaves(params_grad))


def test_a_network_of_any_size_can_be_exported_for_any_size():
    net = BasicUNet(image_size=8, channels=1)
    batch, height, width = export.symbolic_shape("b, 4*h, 4*w")
    xt = jax.ShapeDtypeStruct((batch, height, width, 1), jnp.float32)
    t = jax.ShapeDtypeStruct((batch,), jnp.int32)
    exported = export.export(jax.jit(net.apply))(net.shapes(), xt, t)
    assert exported.out_avals[0].shape[1:3] == (height, width)


@pytest.mark.parametrize("name", COMPILED)
def test_networks_can_be_exported_for_any_batch(name):
    net = COMPILED[name]
    (batch,) = export.symbolic_shape("b")
    symbolic = lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)  # noqa: E731
    shapes = jax.tree.map(symbolic, inputs(net))
    exported = export.export(jax.jit(net.apply))(net.shapes(), *shapes)
    assert exported.out_avals[0].shape == (batch, *net.image_shape)


@pytest.mark.parametrize("name", COMPILED)
def test_outputs_and_gradients_under_x64_are_float32(name):
    net = COMPILED[name]
    expected = jax.eval_shape(partial(run, net), net.shapes(), *inputs(net))
    with jax.enable_x64(True):
        lowered = run.lower(net, net.shapes(), *inputs(net))
    dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)  # noqa: E731
    assert dtypes(lowered.out_info) == dtypes(expected)
