"""Attention by cuDNN: when it is chosen, and that it computes what the plain form does.

cuDNN runs on a GPU only. The tests of values use XLA's implementation of the same function in its
place, and programs for a GPU are lowered, not compiled.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from ddpm_jax.models import attention
from ddpm_jax.models.kernels import cudnn_attention, switch
from ddpm_jax.models.kernels.cudnn_attention import (
    cudnn_attends,
    fused_attention,
    generations_attend,
)


def arrays(*shapes, dtype=jnp.bfloat16):
    """Random arrays of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


QUERIES = (2, 3, 8, 16)
KEYS = (2, 3, 6, 16)


def test_it_is_the_attention_of_the_plain_form_with_its_gradients():
    """In float32, because rounding could hide a wrong scale or a wrong order of the axes."""
    q, k, v, weights = arrays(QUERIES, KEYS, KEYS, QUERIES, dtype=jnp.float32)

    def loss(attend, q, k, v):
        return jnp.sum(weights * attend(q, k, v))

    def fused(q, k, v):
        return fused_attention(q, k, v, "xla")

    np.testing.assert_allclose(fused(q, k, v), attention.attend(q, k, v), atol=1e-6)
    gradients = jax.grad(loss, (1, 2, 3))
    for ours, plain in zip(
        gradients(fused, q, k, v), gradients(attention.attend, q, k, v), strict=True
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.fixture
def with_cudnn(monkeypatch):
    """As if cuDNN and an A100 were here. JAX's own checks and its lowering are real."""
    installed = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", installed)
    monkeypatch.setattr(cudnn_attention, "gpu_generations", lambda: [8])


def attends(queries=QUERIES, keys=KEYS, dtype=jnp.bfloat16):
    """Whether cuDNN replaces the plain form for arrays of these shapes."""
    return cudnn_attends(attention._attend_in_chunks, *arrays(queries, keys, keys, dtype=dtype))


def test_it_is_chosen_for_narrow_dtypes_and_the_shapes_that_jax_accepts(with_cudnn):
    assert attends()
    assert attends(dtype=jnp.float16)
    assert not attends(dtype=jnp.float32)
    assert not attends(keys=(2, 3, 77, 16))
    assert not attends(queries=(2, 3, 8, 12), keys=(2, 3, 6, 12))


def test_without_cudnn_or_a_gpu_or_kernels_it_is_not_chosen(with_cudnn, monkeypatch):
    monkeypatch.setattr(switch, "_chosen", False)
    assert not attends()
    monkeypatch.setattr(switch, "_chosen", True)
    monkeypatch.setattr(cudnn_attention, "gpu_generations", list)
    assert not attends()
    monkeypatch.setattr(cudnn_attention, "gpu_generations", lambda: [8])
    assert attends()
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", None)
    assert not attends()


@pytest.mark.parametrize(
    ("generations", "head_dim", "expected"),
    [
        ([], 64, False),
        ([7], 64, False),  # T4
        ([8], 64, True),  # A100
        ([8], 128, True),
        ([8], 256, False),
        ([9], 256, True),  # H100
        ([10], 256, False),  # B200
        ([10], 128, True),
        ([9, 8], 256, False),
    ],
)
def test_a_gpu_has_it_from_the_a100_on_and_wide_heads_on_the_h100(generations, head_dim, expected):
    assert generations_attend(generations, head_dim) == expected


def lowered(function, platform, *arguments):
    """The program of a function for a platform that need not be here."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "fused"), [("cuda", True), ("cpu", False), ("tpu", False)])
def test_a_gpu_takes_it_and_its_gradient_and_the_others_the_plain_form(with_cudnn, platform, fused):
    q, k, v = arrays(QUERIES, KEYS, KEYS)

    def gradients(q, k, v):
        return jax.grad(lambda *qkv: attention.attend(*qkv).sum(), (0, 1, 2))(q, k, v)

    program = lowered(gradients, platform, q, k, v)
    assert ("__cudnn$fmhaSoftmaxBackward" in program) == fused
    assert ("dot_general" in program) != fused


def test_on_a_cpu_the_values_are_those_of_the_plain_form(with_cudnn):
    """In a compiled function and outside of one."""
    q, k, v = arrays(QUERIES, KEYS, KEYS)
    expected = attention._attend_in_chunks(q, k, v)
    np.testing.assert_array_equal(attention.attend(q, k, v), expected)
    np.testing.assert_allclose(
        np.float32(jax.jit(attention.attend)(q, k, v)), np.float32(expected), atol=1e-2
    )


def test_attention_with_a_mask_is_plain(with_cudnn):
    q, k, v = arrays(QUERIES, KEYS, KEYS)
    mask = jnp.ones((QUERIES[2], KEYS[2]), bool)
    assert "dot_general" in lowered(attention.attend, "cuda", q, k, v, mask)


@pytest.mark.parametrize(("axes", "fused"), [("Auto", True), ("Explicit", False)])
def test_an_explicit_mesh_keeps_its_sharding_by_the_plain_form(with_cudnn, axes, fused):
    """JAX's attention would lose it."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(getattr(jax.sharding.AxisType, axes),))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    q, k, v = jax.device_put(arrays(QUERIES, KEYS, KEYS), rows)
    program = lowered(attention.attend, "cuda", q, k, v)
    assert ("dot_general" in program) != fused
    if not fused:
        assert jax.eval_shape(attention.attend, q, k, v).sharding.spec[0] == "data"


def test_an_axis_of_shard_map_is_kept(with_cudnn):
    """The type check of `shard_map` would refuse branches over different axes."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v = arrays(QUERIES, KEYS, KEYS)
    specs = {"in_specs": (jax.P(), jax.P("data"), jax.P("data")), "out_specs": jax.P("data")}
    attend = jax.shard_map(attention.attend, mesh=mesh, **specs)
    assert attend(q[:1], k, v).shape == QUERIES


def test_generations_are_those_of_the_gpus_of_this_process(monkeypatch):
    gpus = [SimpleNamespace(compute_capability=version) for version in ("9.0", "12.1")]

    def local_devices(backend):
        assert backend == "cuda"
        return gpus

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert cudnn_attention.gpu_generations() == [9, 12]


def test_a_process_without_gpus_has_no_generations(monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert cudnn_attention.gpu_generations() == []
