"""3x3 convolutions on a CPU against the sum that defines them, in float64; and that no slow loop is compiled."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.nets import NETS

from benchmarks.convolutions import convolutions, naive_convolutions
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.kernels import winograd as module
from ddpm_jax.models.kernels.winograd import (
    F2,
    F4,
    conv3x3,
    direct,
    minimal,
    minimal_input_grad,
    minimal_kernel_grad,
)
from ddpm_jax.training.step import init_state, make_train_step, model_loss

# (x, channels out, halve): even, odd, tiny and large images, one image, few channels.
CASES = [
    ((3, 7, 5, 32), 40, None),
    ((3, 7, 5, 32), 40, 1),
    ((2, 2, 3, 32), 32, 0),
    ((2, 32, 32, 32), 32, None),
    ((1, 32, 33, 32), 32, 0),
    ((2, 4, 6, 3), 8, None),
    ((2, 4, 6, 3), 8, 1),
]


def arrays(shape, outputs):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], outputs)) / (3 * shape[-1] ** 0.5)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32), jnp.asarray(kernel, jnp.float32)


def exact(x, kernel, halve=None):
    """The sum over the nine taps, in float64."""
    h, w = x.shape[1:3]
    padded, kernel = pad(np.asarray(x, np.float64)), np.asarray(kernel, np.float64)
    out = sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))
    return out if halve is None else out[:, halve::2, halve::2]


def exact_grads(x, kernel, g, halve=None):
    """The gradients of sum(g * exact(x, kernel)), one tap after the other."""
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    h, w = x.shape[1:3]
    full = np.zeros((*x.shape[:3], g.shape[-1]))
    kept = np.s_[:] if halve is None else np.s_[:, halve::2, halve::2]
    full[kept] = g
    padded, of_kernel = pad(x), np.zeros(kernel.shape)
    of_x = np.zeros(padded.shape)
    for i in range(3):
        for j in range(3):
            of_kernel[i, j] = np.einsum("bhwi,bhwo->io", padded[:, i : i + h, j : j + w], full)
            of_x[:, i : i + h, j : j + w] += full @ kernel[i, j].T
    return of_x[:, 1:-1, 1:-1], of_kernel


def pad(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def error(ours, wanted):
    """The largest difference over the largest number."""
    assert ours.shape == wanted.shape
    return np.abs(ours - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("f", [F2, F4], ids=["F2", "F4"])
def test_a_filtering_is_the_sum(f):
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal(f.size + 2), rng.standard_normal(3)
    ours = f.outputs @ ((f.taps @ kernel) * (f.inputs @ x))
    np.testing.assert_allclose(ours, np.correlate(x, kernel, "valid"), rtol=0, atol=1e-14)


@partial(jax.jit, static_argnums=3)
def with_gradients(x, kernel, g, halve):
    out, pull = jax.vjp(partial(conv3x3, halve=halve), x, kernel)
    return out, *pull(g)


@pytest.mark.parametrize(("shape", "outputs", "halve"), CASES, ids=str)
def test_it_and_its_gradients_are_the_sums(shape, outputs, halve):
    x, kernel = arrays(shape, outputs)
    wanted = exact(x, kernel, halve)
    g = np.random.default_rng(2).standard_normal(wanted.shape, np.float32)
    out, *grads = with_gradients(x, kernel, g, halve)
    assert error(out, wanted) < 2e-6
    for ours, wanted in zip(grads, exact_grads(x, kernel, g, halve), strict=True):
        assert error(ours, wanted) < 4e-6


def test_how_it_rounds_beside_the_direct_sum():
    x, kernel = arrays((2, 16, 16, 128), 128)

    def by(x, kernel, f):
        of_x, of_kernel = minimal_input_grad(x, kernel, f), minimal_kernel_grad(x, x, f)
        return minimal(x, kernel, f), of_x, of_kernel

    @jax.jit
    def all_of(x, kernel):
        return direct(x, kernel), [by(x, kernel, f) for f in (F2, F4)]

    def rms(ours, wanted):
        return np.sqrt(np.mean((ours - wanted) ** 2))

    wanted, (of_x, of_kernel) = exact(x, kernel), exact_grads(x, kernel, x)
    plain, by_f = all_of(x, kernel)
    for most, (out, input_grad, kernel_grad) in zip((1.5, 4.0), by_f, strict=True):
        assert rms(out, wanted) < most * rms(plain, wanted), most
        assert rms(input_grad, of_x) < most * rms(plain, wanted), most
        assert error(kernel_grad, of_kernel) < 2e-6, most


def test_it_is_differentiable_in_both_modes_and_twice():
    x, kernel = arrays((2, 6, 6, 32), 32)

    def grads(conv):
        def slope(x, kernel):
            return jnp.sum(jax.grad(lambda kernel: jnp.sum(jnp.sin(conv(x, kernel))))(kernel) ** 2)

        return *jax.grad(slope, (0, 1))(x, kernel), jax.jvp(conv, (x, kernel), (x, kernel))[1]

    jitted = jax.jit(grads, static_argnums=0)
    for ours, wanted in zip(jitted(conv3x3), jitted(direct), strict=True):
        assert error(ours, wanted) < 1e-5


def test_it_maps_over_any_axis():
    x, kernel = arrays((3, 4, 4, 32), 32)
    ours = jax.jit(jax.vmap(conv3x3, (None, 3), 1))(x, np.stack([kernel, 2 * kernel], 3))
    assert error(ours[:, 1], 2 * exact(x, kernel)) < 2e-6


def test_called_by_itself_it_compiles_once(caplog):
    x, kernel = arrays((1, 3, 3, 5), 7)

    def compilations():
        with jax.log_compiles():
            jax.grad(lambda kernel: jnp.sum(conv3x3(x, kernel, 1)))(kernel)
        return sum("Finished XLA compilation" in record.message for record in caplog.records)

    assert compilations() == compilations() > 0


def test_low_precision_is_left_to_xla():
    x, kernel = arrays((2, 8, 8, 32), 32)
    for dtype in (jnp.bfloat16, jnp.float16):
        text = jax.jit(conv3x3).lower(x.astype(dtype), kernel.astype(dtype)).as_text()
        assert "stablehlo.convolution" in text, dtype
        assert "stablehlo.dot_general" not in text, dtype
    assert "stablehlo.convolution" not in jax.jit(conv3x3).lower(x, kernel).as_text()


def test_large_images_are_taken_one_by_one(monkeypatch):
    x, kernel = arrays((4, 8, 8, 32), 32)

    def both(x, kernel):
        return minimal(x, kernel), minimal_kernel_grad(x, x)

    at_once = jax.jit(both)(x, kernel)
    monkeypatch.setattr(module, "LARGE_IMAGE", 64)
    one_by_one = lambda x, kernel: both(x, kernel)  # noqa: E731 - traced anew
    assert str(jax.make_jaxpr(one_by_one)(x, kernel)).count("scan") == 2
    for ours, wanted in zip(jax.jit(one_by_one)(x, kernel), at_once, strict=True):
        assert error(ours, wanted) < 2e-6


def test_no_convolution_falls_to_the_naive_loop():
    """In a gradient, and in the forward passes of a `lax.scan`; of few and of many channels."""
    rng = np.random.default_rng(3)
    sizes = [(3, 32, None), (32, 32, 0), (32, 40, 1), (40, 3, None)]
    kernels = [jnp.asarray(rng.standard_normal((3, 3, i, o)), jnp.float32) for i, o, _ in sizes]
    x = jnp.zeros((2, 32, 32, 3))

    def net(kernels, x):
        for kernel, (_, _, halve) in zip(kernels, sizes, strict=True):
            x = jnp.sin(conv3x3(x, kernel, halve))
        return jnp.sum(x)

    def forward_passes(kernels, xs):
        return jax.lax.scan(lambda total, x: (total + net(kernels, x), None), 0.0, xs)

    gradient = jax.jit(jax.grad(net, (0, 1))).lower(kernels, x)
    loop = jax.jit(forward_passes).lower(kernels, x[None])
    for program in (gradient, loop):
        text = program.compile().as_text()
        assert convolutions(text)
        assert not naive_convolutions(text)


def test_the_naive_loop_is_recognised():
    fast = "b01f_01io->b01f"
    for labels in (fast, "bf01_01io->b01f", f"{fast}, rhs_reversal=1x1"):
        operation = "  %c.1 = f32[2,8,8,4] convolution(%x, %k), window={size=3x3}"
        line = f"{operation}, dim_labels={labels}, metadata={{}}"
        assert naive_convolutions(f"{line}\n") == ([] if labels == fast else [line]), labels


@pytest.mark.parametrize("name", ["unet", "conv_unet"])
def test_a_training_step_has_no_convolution_of_xlas_own_and_leaves_the_device_nowhere(name):
    """XLA's own gradient of one would fall to the naive loop within a loop."""
    net, tx = NETS[name], optax.sgd(0.1)
    state = jax.eval_shape(partial(init_state, tx=tx), net.shapes())
    keys = jax.random.split(jax.random.key(1), 2)
    batch = {"image": jnp.zeros((2, *net.image_shape)), "key": keys}
    if net.num_classes:
        batch["label"] = jnp.zeros(2, jnp.int32)
    jaxpr = str(jax.make_jaxpr(make_train_step(model_loss(net, Objective()), tx))(state, batch))
    assert "conv3x3_kernel_grad" in jaxpr
    assert "conv_general_dilated" not in jaxpr
    assert not re.search("infeed|outfeed|callback", jaxpr)
