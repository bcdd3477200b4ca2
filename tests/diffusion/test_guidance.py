"""Classifier-free guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.generation.recipe import check_guidance
from ddpm_jax.models import NO_CLASS

LABELS = jnp.array([2, 0, 1])
T = jnp.array([10, 500, 900])
XT = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))


def network(weight, xt, t, labels):
    """Something that is not linear in the label."""
    said = jnp.where(labels == NO_CLASS, 0.3, jnp.sin(2.0 + labels.astype(jnp.float32)))
    return jnp.tanh(weight * xt * per_example(said, xt)) + per_example(t, xt).astype(jnp.float32) / 1000


NETWORK = Partial(network, jnp.float32(0.7))
COND, UNCOND = NETWORK(XT, T, LABELS), NETWORK(XT, T, jnp.full(3, NO_CLASS))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
def test_the_output_is_that_of_ho_and_salimans(scale):
    np.testing.assert_allclose(guide(NETWORK, LABELS, scale)(XT, T), UNCOND + scale * (COND - UNCOND), atol=1e-6)


def test_a_scale_of_1_is_no_guidance_and_0_is_no_label():
    np.testing.assert_allclose(guide(NETWORK, LABELS, 1.0)(XT, T), COND, atol=1e-6)
    np.testing.assert_allclose(guide(NETWORK, LABELS, 0.0)(XT, T), UNCOND, atol=1e-6)
    assert jnp.max(jnp.abs(COND - UNCOND)) > 0.1


def test_the_interval_leaves_the_timesteps_outside_as_they_are():
    found = guide(NETWORK, LABELS, 3.0, interval=(500.0, 899.0))(XT, T)
    np.testing.assert_allclose(found[1], guide(NETWORK, LABELS, 3.0)(XT, T)[1], atol=1e-6)
    np.testing.assert_allclose(found[::2], COND[::2], atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_contrast_back_by_its_share(share):
    guided = guide(NETWORK, LABELS, 5.0)(XT, T)
    found = guide(NETWORK, LABELS, 5.0, rescale=share)(XT, T)
    ratio = np.std(COND, (1, 2, 3)) / np.std(guided, (1, 2, 3))
    np.testing.assert_allclose(
        np.std(found, (1, 2, 3)), np.std(guided, (1, 2, 3)) * (share * ratio + 1 - share), rtol=1e-5
    )


def test_what_is_said_of_the_variance_stays_that_of_the_labels():
    def two(xt, t, labels):
        output = NETWORK(xt, t, labels)
        return jnp.concatenate([output, 0.5 * output], -1)

    for rescale in (None, 0.7):
        found = guide(Partial(two), LABELS, 5.0, rescale=rescale)(XT, T)
        np.testing.assert_array_equal(found[..., 1:], 0.5 * COND)
        np.testing.assert_array_equal(found[..., :1], guide(NETWORK, LABELS, 5.0, rescale=rescale)(XT, T))


def test_both_are_asked_in_one_batch():
    asked = []

    def counted(xt, t, labels):
        asked.append((len(xt), len(t), labels.tolist()))
        return NETWORK(xt, t, labels)

    guide(Partial(counted), LABELS, 2.0)(XT, T)
    assert asked == [(6, 6, [2, NO_CLASS, 0, NO_CLASS, 1, NO_CLASS])]


def test_a_net_that_always_knew_its_labels_is_refused():
    check_guidance(1.0, 0.0)
    with pytest.raises(ValueError, match="guidance needs a net that was trained with and without labels"):
        check_guidance(2.0, 0.0)


def test_every_number_is_traced():
    run = jax.jit(lambda guided: guided(XT, T))
    for scale, interval, rescale, labels in [(2.0, (1.0, 500.0), 0.3, LABELS), (4.0, (0.0, 100.0), 0.5, LABELS[::-1])]:
        run(guide(NETWORK, labels, scale, interval=interval, rescale=rescale))
    assert run._cache_size() == 1
