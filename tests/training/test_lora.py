"""Low-rank changes of a network: their layers, their sum with the weights, and their training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.nets import BLOCK, CONV_UNET, UNET, apply, by_path, draw, inputs, random_like
from helpers.refusals import assert_refused
from helpers.training import SGD, assert_close, assert_same

from ddpm_jax.devices import parallel
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.training.lora import (
    Lora,
    find_targets,
    init_lora,
    lora_loss,
    lora_shapes,
    merge_lora,
)
from ddpm_jax.training.step import example_keys, init_state, make_train_step

KEY = jax.random.key(3)
TEXT = ClipText(vocab_size=11, width=8, hidden_width=16, layers=2, heads=2)
ALL = ("attention", "linear", "conv")


def random_lora(params, targets=ALL, rank=3):
    """A LoRA of random numbers, of which B are not zero either."""
    settings = Lora(rank=rank, targets=targets)
    shapes = jax.eval_shape(lambda: init_lora(KEY, params, settings))
    return random_like(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), scale=0.3)


def layers(net, *targets):
    return [path.removesuffix("/kernel") for path in find_targets(net.shapes(), targets)]


def test_a_merged_kernel_is_w_plus_scale_times_a_b():
    """In PyTorch's terms: einsum("or,rikl->oikl") of a convolution (e.g. peft, LyCORIS)."""
    _, params = draw(CONV_UNET)
    first = random_lora(params)
    second = random_lora(params, ("conv",), rank=2)

    @jax.jit
    def merge(params, scales):
        return merge_lora(merge_lora(params, first, scales[0]), second, scales[1])

    merged = by_path(merge(params, jnp.float32([0.5, -2.0])))
    for path, w in by_path(params).items():
        expected = np.asarray(w, np.float64)
        for scale, lora in ((0.5, first), (-2.0, second)):
            if path in lora:
                a, b = (np.asarray(x, np.float64) for x in lora[path])
                rule = "hwir,ro->hwio" if a.ndim == 4 else "ir,ro->io"
                expected = expected + scale * np.einsum(rule, a, b)
        np.testing.assert_allclose(merged[path], expected, rtol=0, atol=1e-6, err_msg=path)
    assert {np.ndim(a) for a, _ in first.values()} == {2, 4}


def test_weights_keep_their_type_and_are_added_to_in_float32():
    params = {"dense": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}}
    lora = {"dense/kernel": (jnp.full((4, 1), 0.1), jnp.full((1, 4), 0.04))}
    kernel = merge_lora(params, lora)["dense"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert_same(kernel, jnp.full((4, 4), 1 + 0.004, jnp.float32).astype(jnp.bfloat16))


def test_targets_are_sets_of_layers_or_patterns_of_whole_parts_of_paths():
    attention = layers(UNET, "attention")
    assert {path.rpartition("/")[2] for path in attention} == {"to_q", "to_k", "to_v", "to_out"}
    assert len(attention) == 4 * len({path.rpartition("/")[0] for path in attention}) > 0
    assert len(layers(TEXT, "attention")) == 2 * 4
    assert layers(TEXT, "text_model.encoder.layers.1/self_attn") == layers(
        TEXT, "layers.1.self_attn"
    )
    shapes = lora_shapes(UNET.shapes())
    conv = layers(UNET, "conv")
    assert {shapes[f"{path}/kernel"][:2] for path in conv} == {(3, 3)}
    assert "conv_in" in conv
    assert set(layers(UNET, "linear")) > set(attention)
    assert layers(UNET, "down_*/conv1", "conv_in") == ["conv_in", *layers(UNET, "down_*/conv1")]
    assert all(path.endswith("/conv1") for path in layers(UNET, "down_*/conv1"))
    with pytest.raises(ValueError, match="called kernel, and the network has none"):
        find_targets({"w": jnp.zeros((3, 3))}, ("linear",))
    # A transposed convolution has another layout, and no LoRA.
    with pytest.raises(ValueError, match="'upsample_0' matches no layer"):
        layers(CONV_UNET, "upsample_0")


def test_the_convblock_recipe_changes_all_linear_layers_and_3x3_convolutions():
    paths = layers(CONV_UNET, "linear", "conv")
    kernels = {path for path in by_path(CONV_UNET.shapes()) if path.endswith("kernel")}
    left_out = kernels - {f"{path}/kernel" for path in paths}
    assert {path.split("/")[-2] for path in left_out} == {"conv_shortcut", "conv_out", "upsample_0"}


def test_mistakes_are_an_error_of_one_line():
    assert_refused(lambda settings: Lora(**settings), [
        ({"rank": -1}, r"rank must be at least 0, not -1"),
        ({"rank": 4, "alpha": 0.0}, r"alpha must be positive, not 0.0"),
        ({"rank": 4, "targets": ()}, r"targets names no layer"),
        ({"alpha": 8.0}, r"lora.alpha and lora.targets are for a LoRA, but lora.rank is 0"),
        ({"targets": ("conv",)}, r"but lora.rank is 0: set it, such as 4"),
    ])  # fmt: skip
    listed = r"matches no layer: choose attention, linear, conv, or one of conv_in, conv_out, down_"
    assert_refused(lambda target: layers(UNET, target), [
        ("w_q", listed),
        ("onv_in", r"down_\*/resnet_\*/conv\*, .*time_linear_\*"),
    ])  # fmt: skip
    _, params = draw(CONV_UNET)
    pair = (jnp.ones((2, 1)), jnp.ones((1, 2)))
    assert_refused(lambda lora: merge_lora(params, lora), [
        ({"other/kernel": pair}, r"for other parameters: there is no other/kernel"),
        ({"time_linear/kernel": pair}, r"changes time_linear/kernel as an array of \(2, 2\)"),
        ({"time_linear/kernel": (pair[0], jnp.ones((2, 2)))}, r"The ranks .* differ for time_"),
    ])  # fmt: skip
    assert_refused(lambda rank: init_lora(KEY, params, Lora(rank=rank)), [(0, "needs a rank")])


def test_a_new_lora_leaves_the_network_as_it_is_and_draws_a_by_path():
    net, params = draw(CONV_UNET)
    lora = init_lora(KEY, params, Lora(rank=4, targets=ALL))
    assert_same(jax.jit(merge_lora)(params, lora), params)
    some = init_lora(KEY, net.shapes(), Lora(rank=4, targets=("attention",)))
    assert_same(some, {path: lora[path] for path in some})
    numbers = np.concatenate([np.ravel(a) for a, _ in lora.values()])
    np.testing.assert_allclose(np.std(numbers), 1 / 4, rtol=0.1)
    assert len({np.ravel(a)[0] for a, _ in lora.values()}) == len(lora)


# A linear regression from 64 to 32 numbers, whose kernel is large enough to be sharded.
WIDTHS = (64, 32)
SCALE = 0.5


def regression_loss(params, keys, batch):
    output = batch["image"] @ params["dense"]["kernel"]  # (b, 32)
    return jnp.mean((output - batch["image"][:, :32]) ** 2, -1)


def regression():
    """The frozen parameters, a LoRA on them, and a batch of 8."""
    rng = np.random.default_rng(0)
    params = {"dense": {"kernel": jnp.asarray(rng.standard_normal(WIDTHS, np.float32))}}
    lora = random_lora(params, ("linear",))
    images = jnp.asarray(rng.standard_normal((8, 64), np.float32))
    return params, lora, {"image": images, "key": example_keys(KEY, 0, jnp.arange(8))}


@functools.cache
def one_device_step():
    return jax.jit(make_train_step(lora_loss(regression_loss, SCALE), SGD))


def test_a_step_moves_a_and_b_alone_along_the_gradient():
    """By the chain rule: dL/dA = s dL/dW' B^T and dL/dB = s A^T dL/dW'."""
    params, lora, batch = regression()
    state, _ = one_device_step()(init_state(lora, SGD), batch, params)
    ((path, (a, b)),) = lora.items()
    mean = lambda params: jnp.mean(regression_loss(params, None, batch))  # noqa: E731
    gradient = jax.jit(lambda lora: jax.grad(mean)(merge_lora(params, lora, SCALE)))
    g = np.asarray(gradient(lora)["dense"]["kernel"])
    a, b = np.asarray(a), np.asarray(b)
    expected = {path: (a - 0.1 * SCALE * g @ b.T, b - 0.1 * SCALE * a.T @ g)}
    assert_close(state.params, expected)
    sizes = [x.size for x in jax.tree.leaves(init_state(lora, optax.adam(1e-3)))]
    assert max(sizes) == a.size


def test_compiled_programs_do_not_hold_the_frozen_parameters():
    params, lora, batch = regression()
    program = jax.make_jaxpr(one_device_step())(init_state(lora, SGD), batch, params)
    assert [const.shape for const in program.consts] == []


@pytest.mark.parametrize(("route", "fsdp"), [("pmap", 1), ("jit", 1), ("jit", 4)])
def test_every_route_takes_the_same_step(route, fsdp):
    params, lora, batch = regression()
    expected, _ = one_device_step()(init_state(lora, SGD), batch, params)
    frozen = (parallel.put_state(params, fsdp),)
    loss = lora_loss(regression_loss, SCALE)
    make_step = functools.partial(make_train_step, loss, SGD, None)
    step = parallel.parallelize(make_step, route, fsdp, frozen)
    state, _ = step(parallel.put_state(init_state(lora, SGD), fsdp), batch)
    assert_close(state.params, expected.params)
    is_split = not frozen[0]["dense"]["kernel"].sharding.is_fully_replicated
    assert is_split == (fsdp > 1)


def test_the_output_follows_the_scale():
    """From the network alone at scale 0; with one compiled program for all scales."""
    net, params = draw(BLOCK)
    lora = random_lora(params, ("linear", "conv"))
    xt, t, labels = inputs(net)
    traced = []

    @jax.jit
    def merge(params, scale):
        traced.append(scale)
        return merge_lora(params, lora, scale)

    outputs = {scale: apply(net, merge(params, scale), xt, t, labels) for scale in (0.0, 1.0)}
    assert_same(outputs[0.0], apply(net, params, xt, t, labels))
    assert np.max(np.abs(np.subtract(outputs[1.0], outputs[0.0]))) > 1e-2
    assert len(traced) == 1
