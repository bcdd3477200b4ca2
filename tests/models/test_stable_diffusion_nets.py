"""Stable Diffusion's networks: PyTorch's recorded outputs, published sizes, memory, errors."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.nets import UNET
from helpers.refusals import assert_refused
from helpers.stable_diffusion import (
    BOUNDS,
    CONFIGS,
    inputs,
    largest_difference,
    lazy,
    recorded,
    run,
    weights,
)

from ddpm_jax.models import attention, transformer
from ddpm_jax.models.attention import attend
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.pretrained.part_folder import PARTS
from ddpm_jax.pretrained.weight_names import from_state_dict

UNET_2 = {"context_dim": 1024, "heads": (5, 10, 20, 20), "linear_projection": True}
CLIP_2 = {"width": 1024, "hidden_width": 4096, "layers": 23, "heads": 16, "activation": "gelu"}
SMALL_UNET = ConditionalUNet(
    widths=(8,),
    cross_attention=(True,),
    heads=(2,),
    transformer_layers=(1,),
    layers_per_level=1,
    context_dim=6,
    groups=4,
)
SMALL_AUTOENCODER = Autoencoder(widths=(8,), layers_per_level=1, groups=4)
SMALL_CLIP = ClipText(vocab_size=20, max_length=8, width=8, hidden_width=8, layers=2, heads=2)


def shape(*lengths, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(lengths, dtype)


@functools.cache
def read(name):
    """A network of the fixture with its parameters, and the fixture itself."""
    record = recorded(name)
    net = PARTS[record.part].from_config(record.config)
    return net, from_state_dict(net, lazy(weights(record.shapes))), record


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_match_pytorch(name):
    net, params, record = read(name)
    outputs = run(net, params, inputs(record.part))
    assert largest_difference(outputs, record.outputs) < BOUNDS[record.part]


def test_bfloat16_outputs_are_close_to_pytorchs():
    """Those of the U-Net and the autoencoder are compared in tests/parity/stable_diffusion.py."""
    net, params, record = read("clip")
    outputs = run(net, params, inputs(record.part), jnp.bfloat16)
    assert 1e-4 < largest_difference(outputs, record.outputs) < 2e-2


@pytest.mark.parametrize("name", ["unet", "vae", "clip"])
def test_all_layers_compute_in_bfloat16_and_the_outputs_are_float32(name):
    """JAX promotes nothing in the tests, so a float32 array in between is an error."""
    net, params, record = read(name)
    outputs = jax.eval_shape(lambda: run(net, params, inputs(record.part), jnp.bfloat16))
    assert {output.dtype for output in outputs} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("net", "parameters", "tensors"),
    [
        (ConditionalUNet(), 859_520_964, 686),
        (ConditionalUNet(in_channels=9), 859_535_364, 686),
        (ConditionalUNet(**UNET_2), 865_910_724, 686),
        (Autoencoder(), 83_653_863, 248),
        (ClipText(), 123_060_480, 196),
        (ClipText(**CLIP_2), 340_387_840, 372),
    ],
    ids=["SD 1", "SD 1 inpainting", "SD 2", "autoencoder", "SD 1 text", "SD 2 text"],
)
def test_parameter_and_tensor_counts_are_the_published_ones(net, parameters, tensors):
    assert net.parameter_count() == parameters
    assert len(jax.tree.leaves(net.shapes())) == tensors


def test_fresh_parameters_have_the_stated_shapes_and_give_finite_outputs():
    net = SMALL_AUTOENCODER
    params = net.init(jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, net.shapes()
    )
    images = jax.jit(net.decode)(params, jnp.ones((1, 4, 4, 4)))
    assert images.shape == (1, 4, 4, 3)
    assert np.isfinite(images).all()


def test_latents_are_smaller_by_the_factor_of_the_autoencoder():
    assert Autoencoder().factor == 8
    net = Autoencoder(widths=(8, 8, 8, 8), layers_per_level=1, groups=4)
    assert jax.eval_shape(net.encode, net.shapes(), shape(2, 64, 40, 3)).shape == (2, 8, 5, 8)
    assert jax.eval_shape(net.decode, net.shapes(), shape(2, 8, 5, 4)).shape == (2, 64, 40, 3)


def test_decoding_takes_the_same_memory_for_any_batch():
    net = SMALL_AUTOENCODER
    used = [
        jax.jit(net.decode)
        .lower(net.shapes(), shape(batch, 32, 32, 4))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for batch in (1, 8)
    ]
    assert used[1] < 1.5 * used[0]


@pytest.mark.parametrize(("width", "is_direct"), [(256, False), (288, True)])
def test_only_wide_networks_leave_their_convolutions_to_xla(width, is_direct):
    net = Autoencoder(widths=(width,), layers_per_level=1)
    program = str(jax.make_jaxpr(net.decode)(net.shapes(), shape(1, 4, 4, 4)))
    assert ("conv_general_dilated" in program) == is_direct
    assert bool(re.search(r"\bconv3x3\b", program)) != is_direct


@pytest.mark.parametrize("with_mask", [False, True])
def test_attention_to_many_keys_in_chunks_equals_the_whole(with_mask):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 2, 300, 4))
    k, v = rng.standard_normal((2, 1, 2, 4096, 4))
    mask = rng.random((300, 4096)) < 0.5 if with_mask else None
    logits = q @ k.swapaxes(-1, -2) / 2
    if mask is not None:
        logits = np.where(mask, logits, -np.inf)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    expected = exponentials @ v / exponentials.sum(-1, keepdims=True)
    arguments = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    result = jax.jit(attend)(*arguments, None if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def attention_and_gradients(form, q, k, v, weights):
    @jax.jit
    def both(q, k, v, weights):
        out, back = jax.vjp(form, q, k, v)
        return out, *back(weights.astype(out.dtype))

    outputs = both(q, k, v, weights.astype(np.float32))
    return [np.asarray(x, np.float64) for x in outputs]


def divided_last(q, k, v):
    """Attention that sums exponentials and divides by their sum at the end."""
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    logits = product(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))
    weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    mixed = product(weights.astype(v.dtype), v) / jnp.sum(weights, -1, keepdims=True)
    return mixed.astype(v.dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_attention_in_narrow_dtypes_is_as_exact_as_a_division_at_the_end(dtype):
    *arguments, weights = np.random.default_rng(0).standard_normal((4, 2, 2, 64, 16))
    narrow = [jnp.asarray(x, dtype) for x in arguments]
    wide = [x.astype(jnp.float32) for x in narrow]
    exact = attention_and_gradients(attend, *wide, weights)
    ours = attention_and_gradients(attend, *narrow, weights)
    others = attention_and_gradients(divided_last, *narrow, weights)
    for our, other, right in zip(ours, others, exact, strict=True):
        assert np.linalg.norm(our - right) <= 1.5 * np.linalg.norm(other - right)


def test_the_logits_of_float16_do_not_overflow():
    """The second key has the larger product with every query; both are beyond 65,504."""
    q = jnp.full((1, 1, 2, 16), 200.0, jnp.float16)
    k = q.at[:, :, 1].set(220.0)
    v = jnp.zeros_like(q).at[:, :, 1].set(1.0)
    np.testing.assert_array_equal(attend(q, k, v), 1)


def test_attention_to_many_keys_never_holds_all_logits():
    program = str(jax.make_jaxpr(attend)(*[shape(1, 1, 4096, 8)] * 3))
    assert "4096,4096]" not in program
    program = str(jax.make_jaxpr(attend)(*[shape(1, 1, 4095, 8)] * 3))
    assert "4095,4095]" in program


@pytest.mark.parametrize("net", [SMALL_UNET, UNET], ids=["cross-attention", "self-attention"])
def test_a_program_that_collects_no_attention_is_the_same_as_without_it(net, monkeypatch):
    is_latent = isinstance(net, ConditionalUNet)
    xt = shape(1, 4, 4, 4) if is_latent else shape(1, *net.image_shape)
    condition = TextCondition(shape(1, 3, 6)) if is_latent else shape(1, dtype=jnp.int32)

    def program():
        # A new function, which is traced anew.
        apply = lambda *inputs: net.apply(*inputs)  # noqa: E731
        return jax.jit(apply).lower(net.shapes(), xt, shape(1), condition).as_text()

    collecting = program()
    whole = attention.multi_head_attention

    def without(*arguments, sow, **options):
        return whole(*arguments, **options)

    for module in (attention, transformer):
        monkeypatch.setattr(module, "multi_head_attention", without)
    assert program() == collecting


def call_unet(latent_channels=4, image_channels=0, context_dim=6, texts=1, timesteps=(1,)):
    image = shape(1, 4, 4, image_channels) if image_channels else None
    condition = TextCondition(shape(texts, 3, context_dim), image)
    xt = shape(1, 4, 4, latent_channels)
    return jax.eval_shape(SMALL_UNET.apply, SMALL_UNET.shapes(), xt, shape(*timesteps), condition)


def call_clip(length=8, skip=0):
    ids = shape(1, length, dtype=jnp.int32)
    apply = functools.partial(SMALL_CLIP.apply, skip=skip)
    return jax.eval_shape(apply, SMALL_CLIP.shapes(), ids)


def test_inputs_that_do_not_fit_are_refused(monkeypatch):
    # The type check that is on in tests would refuse them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert call_unet().shape == (1, 4, 4, 4)
    assert call_clip(skip=1).shape == (1, 8, 8)
    assert_refused(
        lambda options: call_unet(**options),
        [
            ({"image_channels": 5}, "takes 4 channels, not 9"),
            ({"latent_channels": 3}, "takes 4 channels, not 3"),
            ({"context_dim": 8}, "text states of 6 channels, not 8"),
            ({"texts": 2}, "text must have 1 rows"),
            ({"timesteps": ()}, r"t must have shape \(1,\)"),
        ],
    )
    assert_refused(
        lambda options: call_clip(**options),
        [
            ({"length": 9}, "at most 8 tokens, not 9"),
            ({"skip": 2}, "skip 0 to 1 of them, not 2"),
            ({"skip": -1}, "not -1"),
        ],
    )


def test_settings_that_contradict_each_other_are_refused():
    assert_refused(
        lambda settings: ConditionalUNet(**settings).shapes(),
        [
            ({"heads": (8,)}, "heads names 1 levels, but widths has 4"),
            ({"cross_attention": ()}, "cross_attention names 0 levels"),
            ({"transformer_layers": (1, 1)}, "transformer_layers names 2 levels"),
            ({"heads": (7, 8, 8, 8)}, "7 heads do not divide 320 channels"),
            ({"heads": (0, 8, 8, 8)}, "0 heads do not divide 320 channels"),
        ],
    )
    assert_refused(
        lambda settings: ClipText(**settings),
        [
            ({"heads": 7}, "7 heads do not divide 768"),
            ({"heads": 0}, "at least 1, not 12 and 0"),
            ({"layers": -1}, "at least 1, not -1 and 12"),
        ],
    )
