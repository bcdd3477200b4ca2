"""Attention by cuDNN: when it is chosen, and that it computes what the plain form does.

cuDNN itself runs on a GPU only. XLA's implementation of the same function stands in for its values.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    """In float32, so that rounding hides no other scale and no other order of the axes."""
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


def refused(q, k, v, implementation="cudnn"):
    """Stands for `fused_attention` on a machine without cuDNN."""
    raise RuntimeError("cuDNN is not detected.")


def accepted(q, k, v, implementation="cudnn"):
    """Stands for `fused_attention` with values that tell it from the plain form."""
    return jnp.full_like(q, 7)


@pytest.fixture
def with_cudnn(monkeypatch):
    """As if cuDNN were installed, without a GPU at hand."""
    monkeypatch.setattr(cudnn_attention, "gpu_generations", list)
    for module in (cudnn_attention, attention):
        monkeypatch.setattr(module, "fused_attention", accepted)


def test_it_is_chosen_for_narrow_dtypes_where_jax_accepts_the_shapes(with_cudnn, monkeypatch):
    q, k = arrays(QUERIES, KEYS)
    assert cudnn_attends(q, k, k)
    assert cudnn_attends(*(x.astype(jnp.float16) for x in (q, k, k)))
    assert not cudnn_attends(*(x.astype(jnp.float32) for x in (q, k, k)))
    monkeypatch.setattr(cudnn_attention, "gpu_generations", lambda: [7])
    assert not cudnn_attends(q, k, k)
    monkeypatch.setattr(cudnn_attention, "gpu_generations", lambda: [9])
    monkeypatch.setattr(cudnn_attention, "fused_attention", refused)
    assert not cudnn_attends(q, k, k)


def test_kernels_that_are_off_leave_it_out(with_cudnn, monkeypatch):
    monkeypatch.setattr(switch, "_chosen", False)
    q, k = arrays(QUERIES, KEYS)
    assert not cudnn_attends(q, k, k)


@pytest.mark.parametrize(
    ("generations", "head_dim", "attends"),
    [
        ([7], 64, False),  # T4
        ([8], 64, True),  # A100
        ([8], 128, True),
        ([8], 256, False),
        ([9], 256, True),  # H100
        ([10], 256, False),  # B200
        ([10], 128, True),
        ([9, 8], 256, False),
        ([], 256, True),  # for a GPU that is not here
    ],
)
def test_a_gpu_has_it_from_the_a100_on_and_wide_heads_on_the_h100(generations, head_dim, attends):
    assert generations_attend(generations, head_dim) == attends


def test_a_gpu_takes_it_and_a_cpu_the_plain_form(with_cudnn):
    q, k, v = arrays(QUERIES, KEYS, KEYS)
    attend = jax.jit(attention.attend)
    np.testing.assert_array_equal(attend(q, k, v), attention._attend_in_chunks(q, k, v))
    lower = attend.trace(q, k, v).lower
    assert "dot_general" in lower(lowering_platforms=("cpu",)).as_text()
    assert "dot_general" in lower(lowering_platforms=("tpu",)).as_text()
    assert "dot_general" not in lower(lowering_platforms=("cuda",)).as_text()


def test_attention_with_a_mask_is_plain(with_cudnn):
    q, k, v = arrays(QUERIES, KEYS, KEYS)
    mask = jnp.ones((QUERIES[2], KEYS[2]), bool)
    lowered = jax.jit(attention.attend).trace(q, k, v, mask).lower(lowering_platforms=("cuda",))
    assert "dot_general" in lowered.as_text()


def test_generations_are_those_of_the_gpus_of_this_process(monkeypatch):
    gpus = [SimpleNamespace(compute_capability=version) for version in ("9.0", "12.1")]

    def local_devices(backend):
        assert backend == "cuda"
        return gpus

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert cudnn_attention.gpu_generations() == [9, 12]


def test_a_process_without_gpus_has_no_generations():
    assert cudnn_attention.gpu_generations() == []
