"""3x3 convolutions on a CPU: against their definition in float64, and as compiled programs."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.nets import CONV_UNET, TWO_LEVELS

from benchmarks.convolutions import convolutions, naive_convolutions
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.kernels import winograd as module
from ddpm_jax.models.kernels.winograd import (
    F2,
    F4,
    conv3x3,
    direct,
    winograd_conv,
    winograd_input_grad,
    winograd_kernel_grad,
)
from ddpm_jax.training.step import init_state, make_train_step, model_loss

# (shape of x, output channels, stride_offset): even, odd, tiny and large images, one image, few
# channels.
CASES = [
    ((3, 7, 5, 32), 40, None),
    ((3, 7, 5, 32), 40, 1),
    ((2, 2, 3, 32), 32, 0),
    ((2, 32, 32, 32), 32, None),
    ((1, 32, 33, 32), 32, 0),
    ((2, 4, 6, 3), 8, None),
    ((2, 4, 6, 3), 8, 1),
]


def random_arrays(shape, channels_out):
    """x of this shape and a kernel (3, 3, i, o)."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], channels_out)) / (3 * shape[-1] ** 0.5)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32), jnp.asarray(kernel, jnp.float32)


def exact(x, kernel, stride_offset=None):
    """The convolution as a sum over the nine taps, in float64."""
    h, w = x.shape[1:3]
    padded = pad(np.asarray(x, np.float64))
    kernel = np.asarray(kernel, np.float64)
    out = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    return out if stride_offset is None else out[:, stride_offset::2, stride_offset::2]


def exact_grads(x, kernel, g, stride_offset=None):
    """The gradients of sum(g * exact(x, kernel)) by x and kernel, tap by tap."""
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    h, w = x.shape[1:3]
    kept = np.s_[:]
    if stride_offset is not None:
        kept = np.s_[:, stride_offset::2, stride_offset::2]
    full = np.zeros((*x.shape[:3], g.shape[-1]))
    full[kept] = g
    padded = pad(x)
    padded_x_grad = np.zeros(padded.shape)
    kernel_grad = np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            kernel_grad[i, j] = np.einsum("bhwi,bhwo->io", padded[:, i : i + h, j : j + w], full)
            padded_x_grad[:, i : i + h, j : j + w] += full @ kernel[i, j].T
    return padded_x_grad[:, 1:-1, 1:-1], kernel_grad


def pad(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def error(ours, expected):
    """The largest difference, relative to the largest expected number."""
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("f", [F2, F4], ids=["F2", "F4"])
def test_a_winograd_transform_computes_the_correlation(f):
    rng = np.random.default_rng(1)
    x = rng.standard_normal(f.size + 2)
    kernel = rng.standard_normal(3)
    ours = f.outputs @ ((f.taps @ kernel) * (f.inputs @ x))
    np.testing.assert_allclose(ours, np.correlate(x, kernel, "valid"), rtol=0, atol=1e-14)


@partial(jax.jit, static_argnums=3)
def conv_and_grads(x, kernel, g, stride_offset):
    out, pull = jax.vjp(partial(conv3x3, stride_offset=stride_offset), x, kernel)
    return out, *pull(g)


@pytest.mark.parametrize(("shape", "channels_out", "stride_offset"), CASES, ids=str)
def test_conv3x3_and_its_gradients_match_float64(shape, channels_out, stride_offset):
    x, kernel = random_arrays(shape, channels_out)
    expected = exact(x, kernel, stride_offset)
    g = np.random.default_rng(2).standard_normal(expected.shape, np.float32)
    out, *grads = conv_and_grads(x, kernel, g, stride_offset)
    assert error(out, expected) < 2e-6
    for ours, expected_grad in zip(grads, exact_grads(x, kernel, g, stride_offset), strict=True):
        assert error(ours, expected_grad) < 4e-6


def test_rounding_stays_near_the_direct_convolution():
    """F2 has at most 1.5 times its rms error, F4 at most 4 times."""
    x, kernel = random_arrays((2, 16, 16, 128), 128)

    def winograd(x, kernel, f):
        x_grad = winograd_input_grad(x, kernel, f)
        kernel_grad = winograd_kernel_grad(x, x, f)
        return winograd_conv(x, kernel, f), x_grad, kernel_grad

    @jax.jit
    def direct_and_winograd(x, kernel):
        return direct(x, kernel), [winograd(x, kernel, f) for f in (F2, F4)]

    def rms(ours, expected):
        return np.sqrt(np.mean((ours - expected) ** 2))

    expected = exact(x, kernel)
    expected_x_grad, expected_kernel_grad = exact_grads(x, kernel, x)
    plain, results = direct_and_winograd(x, kernel)
    direct_error = rms(plain, expected)
    for maximum, (out, x_grad, kernel_grad) in zip((1.5, 4.0), results, strict=True):
        assert rms(out, expected) < maximum * direct_error, maximum
        assert rms(x_grad, expected_x_grad) < maximum * direct_error, maximum
        assert error(kernel_grad, expected_kernel_grad) < 2e-6, maximum


def test_conv3x3_is_differentiable_twice_and_in_both_modes():
    x, kernel = random_arrays((2, 6, 6, 32), 32)

    def derivatives(conv):
        def squared_gradient(x, kernel):
            return jnp.sum(jax.grad(lambda kernel: jnp.sum(jnp.sin(conv(x, kernel))))(kernel) ** 2)

        second_order = jax.grad(squared_gradient, (0, 1))(x, kernel)
        _, tangent = jax.jvp(conv, (x, kernel), (x, kernel))
        return *second_order, tangent

    jitted = jax.jit(derivatives, static_argnums=0)
    for ours, expected in zip(jitted(conv3x3), jitted(direct), strict=True):
        assert error(ours, expected) < 1e-5


def test_vmap_works_over_any_axis():
    x, kernel = random_arrays((3, 4, 4, 32), 32)
    ours = jax.jit(jax.vmap(conv3x3, (None, 3), 1))(x, np.stack([kernel, 2 * kernel], 3))
    assert error(ours[:, 1], 2 * exact(x, kernel)) < 2e-6


def test_calls_outside_jit_compile_once(caplog):
    x, kernel = random_arrays((1, 3, 3, 5), 7)

    def compilations():
        with jax.log_compiles():
            jax.grad(lambda kernel: jnp.sum(conv3x3(x, kernel, 1)))(kernel)
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    # The records of both calls are counted together, so equal numbers mean none at the second.
    assert compilations() == compilations() > 0


def test_half_precision_uses_xlas_convolution():
    x, kernel = random_arrays((2, 8, 8, 32), 32)
    for dtype in (jnp.bfloat16, jnp.float16):
        text = jax.jit(conv3x3).lower(x.astype(dtype), kernel.astype(dtype)).as_text()
        assert "stablehlo.convolution" in text, dtype
        assert "stablehlo.dot_general" not in text, dtype
    assert "stablehlo.convolution" not in jax.jit(conv3x3).lower(x, kernel).as_text()


def test_large_images_are_convolved_one_by_one(monkeypatch):
    x, kernel = random_arrays((4, 8, 8, 32), 32)

    def both(x, kernel):
        return winograd_conv(x, kernel), winograd_kernel_grad(x, x)

    at_once = jax.jit(both)(x, kernel)
    monkeypatch.setattr(module, "LARGE_IMAGE", 64)

    def one_by_one(x, kernel):  # a new function, so it is traced again
        return both(x, kernel)

    assert str(jax.make_jaxpr(one_by_one)(x, kernel)).count("scan") == 2
    for ours, expected in zip(jax.jit(one_by_one)(x, kernel), at_once, strict=True):
        assert error(ours, expected) < 2e-6


def test_no_convolution_compiles_to_the_naive_loop():
    """Neither in a gradient nor in forward passes in a `lax.scan`, with few or many channels."""
    rng = np.random.default_rng(3)
    layers = [(3, 32, None), (32, 32, 0), (32, 40, 1), (40, 3, None)]  # i, o, stride_offset
    kernels = [jnp.asarray(rng.standard_normal((3, 3, i, o)), jnp.float32) for i, o, _ in layers]
    x = jnp.zeros((2, 32, 32, 3))

    def net(kernels, x):
        for kernel, (_, _, stride_offset) in zip(kernels, layers, strict=True):
            x = jnp.sin(conv3x3(x, kernel, stride_offset))
        return jnp.sum(x)

    def forward_passes(kernels, xs):
        return jax.lax.scan(lambda total, x: (total + net(kernels, x), None), 0.0, xs)

    gradient = jax.jit(jax.grad(net, (0, 1))).lower(kernels, x)
    loop = jax.jit(forward_passes).lower(kernels, x[None])
    for program in (gradient, loop):
        text = program.compile().as_text()
        assert convolutions(text)
        assert not naive_convolutions(text)


def test_naive_convolutions_are_recognised():
    fast = "b01f_01io->b01f"
    for labels in (fast, "bf01_01io->b01f", f"{fast}, rhs_reversal=1x1"):
        operation = "  %c.1 = f32[2,8,8,4] convolution(%x, %k), window={size=3x3}"
        line = f"{operation}, dim_labels={labels}, metadata={{}}"
        assert naive_convolutions(f"{line}\n") == ([] if labels == fast else [line]), labels


@pytest.mark.parametrize("net", [TWO_LEVELS, CONV_UNET], ids=["unet", "conv_unet"])
def test_a_training_step_uses_no_xla_convolution_and_no_host_callback(net):
    """The gradient of XLA's convolution would be the naive loop if the step ran in a loop."""
    tx = optax.sgd(0.1)
    state = jax.eval_shape(partial(init_state, tx=tx), net.shapes())
    keys = jax.random.split(jax.random.key(1), 2)
    batch = {"image": jnp.zeros((2, *net.image_shape)), "key": keys}
    if net.num_classes:
        batch["label"] = jnp.zeros(2, jnp.int32)
    jaxpr = str(jax.make_jaxpr(make_train_step(model_loss(net, Objective()), tx))(state, batch))
    assert "conv3x3_kernel_grad" in jaxpr
    assert "conv_general_dilated" not in jaxpr
    assert not re.search("infeed|outfeed|callback", jaxpr)
