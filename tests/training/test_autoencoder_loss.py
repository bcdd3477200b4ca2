"""The loss of an autoencoder: exact divergence, and that its noise is each example's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import draws
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.training.autoencoder_loss import autoencoder_loss, kl_to_normal

pytestmark = pytest.mark.usefixtures("without_kernels")

AUTOENCODER = ImageAutoencoder(
    image_size=4, channels=3, latent_channels=2, widths=(4,), layers_per_level=1, groups=2
)
LOSS = jax.jit(autoencoder_loss(AUTOENCODER))


def moments_of(mean, variance):
    return jnp.full((1, 1, 1, 2), mean, jnp.float32).at[..., 1].set(np.log(variance))


def test_the_divergence_is_that_of_two_normals():
    """log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, with m2 = 0 and s2 = 1."""
    assert kl_to_normal(moments_of(0.0, 1.0)).item() == 0
    mean, std = 1.5, 0.25
    expected = -np.log(std) + (std**2 + mean**2) / 2 - 0.5
    assert kl_to_normal(moments_of(mean, std**2)).item() == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def inputs():
    params = AUTOENCODER.init(draws.make_key(1))
    return params, draws.normal(draws.make_key(2), (2, 4, 4, 3))


def test_images_of_integers_are_refused(inputs):
    params, _ = inputs
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"image must be floats, not uint8"):
        LOSS(params, keys, {"image": np.zeros((2, 4, 4, 3), np.uint8)})


def test_the_loss_of_a_narrow_posterior_is_the_error_of_its_mean(inputs):
    """With log variance far below the limit of -30, z is the mean."""
    params, images = inputs
    bias = params["quant_conv"]["bias"]
    half = AUTOENCODER.latent_channels
    narrow = {**params, "quant_conv": {**params["quant_conv"], "bias": bias.at[half:].add(-1e4)}}
    keys = jax.random.split(jax.random.key(0), 2)
    losses = LOSS(narrow, keys, {"image": images})

    @jax.jit
    def moments_and_images_of_means(params, images):
        moments = AUTOENCODER.encode(params, images)
        return moments, AUTOENCODER.decode(params, moments[..., :half])

    moments, restored = moments_and_images_of_means(narrow, images)
    error = np.abs(images - restored).mean((1, 2, 3))
    divergence = np.asarray(kl_to_normal(moments)).mean((1, 2, 3))
    np.testing.assert_allclose(losses, error + AUTOENCODER.kl_weight * divergence, rtol=1e-5)


def test_the_loss_of_an_example_depends_on_its_own_key_alone(inputs):
    params, images = inputs
    keys = jax.random.split(jax.random.key(0), 2)
    first, second = LOSS(params, keys, {"image": images})
    swapped = LOSS(params, keys[::-1], {"image": images[::-1]})
    np.testing.assert_allclose(swapped, [second, first], rtol=1e-5)
    of_other_keys = LOSS(params, keys[::-1], {"image": images})
    assert abs(of_other_keys[0] - first) > 1e-6
