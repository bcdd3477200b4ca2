"""Classifier-free guidance matches its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax.diffusion.guidance import bind, guide
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.generation.model_spec import check_guidance
from ddpm_jax.models import NO_CLASS

LABELS = np.array([2, 0, 1], np.int32)
NO_LABELS = np.full(3, NO_CLASS, np.int32)
T = jnp.array([10, 500, 900])
XT = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 1)), jnp.float32)


def label_network(weight, xt, t, labels):
    """A network that is not linear in the label."""
    factor = jnp.where(labels == NO_CLASS, 0.3, jnp.sin(2.0 + labels.astype(jnp.float32)))
    factor = per_example(factor, xt)
    t = per_example(t, xt).astype(jnp.float32)
    return jnp.tanh(weight * xt * factor) + t / 1000


call = jax.jit(lambda network, xt, t: network(xt, t))
NETWORK = Partial(label_network, jnp.float32(0.7))
COND = np.asarray(call(bind(NETWORK, LABELS), XT, T))
UNCOND = np.asarray(call(bind(NETWORK, NO_LABELS), XT, T))


def guided(scale, network=NETWORK, **options):
    return np.asarray(call(guide(network, LABELS, NO_LABELS, scale, **options), XT, T))


def test_bind_passes_the_condition_to_the_network():
    np.testing.assert_array_equal(COND, jax.jit(label_network)(jnp.float32(0.7), XT, T, LABELS))
    for condition in (None, {"labels": LABELS, "none": None}):
        arguments = bind(lambda xt, t, condition: (xt, t, condition), condition)(XT, T)
        assert arguments[:2] == (XT, T)
        assert arguments[2] is condition or arguments[2] == condition


def test_bound_conditions_and_parameters_are_traced():
    call(bind(NETWORK, LABELS), XT, T)
    num_programs = call._cache_size()
    for weight, labels in [(0.7, LABELS), (0.5, LABELS[::-1]), (0.2, NO_LABELS)]:
        call(bind(Partial(label_network, jnp.float32(weight)), labels), XT, T)
    assert call._cache_size() == num_programs


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_guided_output_matches_ho_and_salimans(scale):
    np.testing.assert_allclose(guided(scale), UNCOND + scale * (COND - UNCOND), atol=1e-6)


def test_scale_1_gives_the_conditional_output_and_scale_0_the_unconditional():
    np.testing.assert_allclose(guided(1.0), COND, atol=1e-6)
    np.testing.assert_allclose(guided(0.0), UNCOND, atol=1e-6)
    assert np.max(np.abs(COND - UNCOND)) > 0.1


@pytest.mark.parametrize("options", [{}, {"interval": (0.0, 1000.0)}], ids=["all", "interval"])
def test_each_image_may_have_its_own_scale(options):
    scales = np.float32([0.0, 1.0, 3.5])
    expected = UNCOND + scales[:, None, None, None] * (COND - UNCOND)
    np.testing.assert_allclose(guided(jnp.asarray(scales), **options), expected, atol=1e-6)
    with pytest.raises(ValueError, match="scale must have 3 rows"):
        guided(jnp.asarray(scales[:2]), **options)


def test_guidance_needs_an_unconditional_condition():
    with pytest.raises(ValueError, match="train the network with label_dropout"):
        guide(NETWORK, LABELS, None, 2.0)


def test_a_condition_may_be_any_tree_of_arrays():
    """A tree of class labels, text states and images works, with its own unconditional tree."""
    rng = np.random.default_rng(1)

    def random_condition():
        label, text, image = (rng.standard_normal((3, *shape)) for shape in ((), (5, 7), (4, 4, 1)))
        return jax.tree.map(np.float32, {"label": label, "rest": (text, image)})

    def tree_network(xt, t, condition):
        label = condition["label"]
        text, image = condition["rest"]
        return jnp.tanh(xt * per_example(label, xt) + per_example(text.mean((1, 2)), xt) * image)

    condition = random_condition()
    unconditional = random_condition()
    output = call(guide(tree_network, condition, unconditional, 3.0), XT, T)
    cond = np.asarray(call(bind(tree_network, condition), XT, T))
    uncond = np.asarray(call(bind(tree_network, unconditional), XT, T))
    np.testing.assert_allclose(output, uncond + 3 * (cond - uncond), atol=1e-6)
    assert np.max(np.abs(cond - uncond)) > 0.1


def test_timesteps_outside_the_interval_are_not_guided():
    output = guided(3.0, interval=(500.0, 899.0))
    np.testing.assert_allclose(output[1], guided(3.0)[1], atol=1e-6)
    np.testing.assert_allclose(output[::2], COND[::2], atol=1e-6)
    # Both ends belong to the interval.
    to_its_ends = guided(3.0, interval=(10.0, 500.0))
    np.testing.assert_allclose(to_its_ends[:2], guided(3.0)[:2], atol=1e-6)
    np.testing.assert_allclose(to_its_ends[2], COND[2], atol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.7, 1.0])
def test_rescale_interpolates_the_std_of_guided_and_conditional_output(fraction):
    plain = guided(5.0)
    rescaled = guided(5.0, rescale=fraction)
    ratio = np.std(COND, (1, 2, 3)) / np.std(plain, (1, 2, 3))
    expected = np.std(plain, (1, 2, 3)) * (fraction * ratio + 1 - fraction)
    np.testing.assert_allclose(np.std(rescaled, (1, 2, 3)), expected, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.7])
def test_a_constant_output_has_no_std_to_rescale(fraction):
    output = guided(5.0, lambda xt, t, labels: 0 * xt, rescale=fraction)
    np.testing.assert_array_equal(output, np.zeros_like(XT))


def test_the_log_variance_is_the_conditional_one():
    def network_with_log_var(xt, t, labels):
        log_var = per_example(labels + 2, xt).astype(jnp.float32) * xt
        return jnp.concatenate([NETWORK(xt, t, labels), log_var], -1)

    for rescale in (None, 0.7):
        output = guided(5.0, network_with_log_var, rescale=rescale)
        log_var = np.float32(LABELS + 2).reshape(3, 1, 1, 1) * np.asarray(XT)
        np.testing.assert_array_equal(output[..., 1:], log_var)
        np.testing.assert_allclose(output[..., :1], guided(5.0, rescale=rescale), atol=1e-6)


def test_both_outputs_are_computed_in_one_batch():
    calls = []

    def recording_network(xt, t, labels):
        calls.append((len(xt), len(t), labels.tolist()))
        return NETWORK(xt, t, labels)

    guide(recording_network, LABELS, NO_LABELS, 2.0)(XT, T)
    assert calls == [(6, 6, [2, NO_CLASS, 0, NO_CLASS, 1, NO_CLASS])]


def test_guidance_of_a_network_trained_without_label_dropout_is_refused():
    check_guidance(1.0, 0.0)
    with pytest.raises(ValueError, match="Guidance needs a network that was trained with and"):
        check_guidance(2.0, 0.0)


def test_scale_interval_and_rescale_are_traced():
    guided(1.5, interval=(0.0, 1.0), rescale=0.1)
    num_programs = call._cache_size()
    guided(2.0, interval=(1.0, 500.0), rescale=0.3)
    call(guide(NETWORK, LABELS[::-1], NO_LABELS, 4.0, interval=(0.0, 100.0), rescale=0.5), XT, T)
    assert call._cache_size() == num_programs


def test_an_interval_that_descends_is_refused():
    with pytest.raises(ValueError, match=r"ascending order, not 9\.0 3\.0"):
        guide(NETWORK, LABELS, NO_LABELS, 2.0, interval=(9.0, 3.0))


def test_a_condition_needs_one_row_per_image():
    networks = [bind(NETWORK, LABELS[:1]), guide(NETWORK, LABELS[:1], NO_LABELS[:1], 2.0)]
    networks.append(guide(NETWORK, LABELS, NO_LABELS[:1], 2.0))
    cases = [(network, "condition(al)? must have 3 rows, one per image") for network in networks]
    assert_refused(lambda network: network(XT, T), cases)
