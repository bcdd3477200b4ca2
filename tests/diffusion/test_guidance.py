"""Classifier-free guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion.guidance import bind, guide
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.generation.recipe import check_guidance
from ddpm_jax.models import NO_CLASS

LABELS, NONE = np.array([2, 0, 1], np.int32), np.full(3, NO_CLASS, np.int32)
T = jnp.array([10, 500, 900])
XT = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 1)), jnp.float32)


def network(weight, xt, t, labels):
    """Something that is not linear in the label."""
    factor = jnp.where(labels == NO_CLASS, 0.3, jnp.sin(2.0 + labels.astype(jnp.float32)))
    factor, t = per_example(factor, xt), per_example(t, xt).astype(jnp.float32)
    return jnp.tanh(weight * xt * factor) + t / 1000


call = jax.jit(lambda network, xt, t: network(xt, t))
NETWORK = Partial(network, jnp.float32(0.7))
COND, UNCOND = (np.asarray(call(bind(NETWORK, labels), XT, T)) for labels in (LABELS, NONE))


def guided(scale, net=NETWORK, **options):
    return np.asarray(call(guide(net, LABELS, NONE, scale, **options), XT, T))


def test_bind_gives_the_network_its_condition():
    np.testing.assert_array_equal(COND, jax.jit(network)(jnp.float32(0.7), XT, T, LABELS))
    for condition in (None, {"labels": LABELS, "none": None}):
        found = bind(lambda xt, t, condition: (xt, t, condition), condition)(XT, T)
        assert found[:2] == (XT, T)
        assert found[2] is condition or found[2] == condition


def test_bound_conditions_and_parameters_are_traced():
    count = call._cache_size()
    for weight, labels in [(0.7, LABELS), (0.5, LABELS[::-1]), (0.2, NONE)]:
        call(bind(Partial(network, jnp.float32(weight)), labels), XT, T)
    assert call._cache_size() == count


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_the_output_is_that_of_ho_and_salimans(scale):
    np.testing.assert_allclose(guided(scale), UNCOND + scale * (COND - UNCOND), atol=1e-6)


def test_a_scale_of_1_is_no_guidance_and_0_is_no_label():
    np.testing.assert_allclose(guided(1.0), COND, atol=1e-6)
    np.testing.assert_allclose(guided(0.0), UNCOND, atol=1e-6)
    assert np.max(np.abs(COND - UNCOND)) > 0.1


def test_a_condition_may_be_any_tree_of_arrays():
    """Class labels, text states and an image beside each other, each with its own unconditional."""
    rng = np.random.default_rng(1)

    def draw():
        label, text, image = (rng.standard_normal((3, *shape)) for shape in ((), (5, 7), (4, 4, 1)))
        return jax.tree.map(np.float32, {"label": label, "rest": (text, image)})

    def of_tree(xt, t, condition):
        label, (text, image) = condition["label"], condition["rest"]
        return jnp.tanh(xt * per_example(label, xt) + per_example(text.mean((1, 2)), xt) * image)

    conditions = draw(), draw()
    found = call(guide(of_tree, *conditions, 3.0), XT, T)
    cond, uncond = (np.asarray(call(bind(of_tree, each), XT, T)) for each in conditions)
    np.testing.assert_allclose(found, uncond + 3 * (cond - uncond), atol=1e-6)
    assert np.max(np.abs(cond - uncond)) > 0.1


def test_the_interval_leaves_the_timesteps_outside_as_they_are():
    found = guided(3.0, interval=(500.0, 899.0))
    np.testing.assert_allclose(found[1], guided(3.0)[1], atol=1e-6)
    np.testing.assert_allclose(found[::2], COND[::2], atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_contrast_back_by_its_share(share):
    plain, found = guided(5.0), guided(5.0, rescale=share)
    ratio = np.std(COND, (1, 2, 3)) / np.std(plain, (1, 2, 3))
    wanted = np.std(plain, (1, 2, 3)) * (share * ratio + 1 - share)
    np.testing.assert_allclose(np.std(found, (1, 2, 3)), wanted, rtol=1e-5)


def test_the_log_variance_is_the_conditional_one():
    def two(xt, t, labels):
        log_var = per_example(labels + 2, xt).astype(jnp.float32) * xt
        return jnp.concatenate([NETWORK(xt, t, labels), log_var], -1)

    for rescale in (None, 0.7):
        found = guided(5.0, two, rescale=rescale)
        log_var = np.float32(LABELS + 2).reshape(3, 1, 1, 1) * np.asarray(XT)
        np.testing.assert_array_equal(found[..., 1:], log_var)
        np.testing.assert_allclose(found[..., :1], guided(5.0, rescale=rescale), atol=1e-6)


def test_both_are_asked_in_one_batch():
    asked = []

    def counted(xt, t, labels):
        asked.append((len(xt), len(t), labels.tolist()))
        return NETWORK(xt, t, labels)

    guide(counted, LABELS, NONE, 2.0)(XT, T)
    assert asked == [(6, 6, [2, NO_CLASS, 0, NO_CLASS, 1, NO_CLASS])]


def test_a_net_that_always_knew_its_labels_is_refused():
    check_guidance(1.0, 0.0)
    with pytest.raises(ValueError, match="guidance needs a net that was trained with and"):
        check_guidance(2.0, 0.0)


def test_every_number_is_traced():
    guided(1.5, interval=(0.0, 1.0), rescale=0.1)
    count = call._cache_size()
    guided(2.0, interval=(1.0, 500.0), rescale=0.3)
    call(guide(NETWORK, LABELS[::-1], NONE, 4.0, interval=(0.0, 100.0), rescale=0.5), XT, T)
    assert call._cache_size() == count
