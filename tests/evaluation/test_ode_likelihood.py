"""The likelihood of the ODE is exact on Gaussians and on a finite set of images."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.pixels import to_floats
from ddpm_jax.diffusion.analytic import gaussian_x0, mixture_x0
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import edm_betas, from_betas, linear_betas, squaredcos_betas
from ddpm_jax.evaluation.ode_likelihood import OdeBits, log_density, ode_bits, random_signs
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Model
from ddpm_jax.samplers import sample_keys

SHAPE = (2, 3, 1)
N = 64


def gaussian(seed, correlated=True):
    """A mean, a covariance and its eigenvectors."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0] if correlated else np.eye(6)
    variances = np.array([0.5, 0.3, 0.1, 0.03, 0.01, 0.0])
    return 0.4 * rng.standard_normal(SHAPE), (axes * variances) @ axes.T


def states_and_signs(seed=0, probes=2):
    keys = sample_keys(seed, jnp.arange(N))
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, *SHAPE), np.float32)), (
        random_signs(keys, SHAPE, probes)
    )


def exact(schedule, mean, covariance, z):
    """log N(z; signal mean, signal^2 C + std^2 I) with the levels of t = 0, in float64."""
    alpha_bar = float(schedule.alpha_bar[0])
    covariance = alpha_bar * covariance + (1 - alpha_bar) * np.eye(6)
    centred = (np.asarray(z, np.float64) - np.sqrt(alpha_bar) * mean).reshape(N, 6)
    squares = np.sum(centred * np.linalg.solve(covariance, centred.T).T, 1)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])


def estimate(schedule, mean, covariance, z, signs, **options):
    network = gaussian_x0(schedule, jnp.float32(mean), jnp.float32(covariance))
    return log_density(schedule, make_denoiser(schedule, network, "x0", None), z, signs, **options)


def near_data(schedule, mean, covariance, noise):
    """States at t = 0 with the covariance of the data."""
    root = np.linalg.cholesky(
        float(schedule.alpha_bar[0]) * covariance + (1 - float(schedule.alpha_bar[0])) * np.eye(6)
    )
    flat = np.asarray(noise).reshape(N, 6) @ root.T
    return jnp.float32(np.sqrt(float(schedule.alpha_bar[0])) * mean + flat.reshape(N, *SHAPE))


@pytest.mark.parametrize("betas", [linear_betas(), squaredcos_betas(), edm_betas()])
def test_the_log_density_of_a_gaussian_is_exact(betas):
    """With independent pixels every sign vector gives the exact trace."""
    schedule = from_betas(betas)
    mean, covariance = gaussian(0, correlated=False)
    noise, signs = states_and_signs()
    z = near_data(schedule, mean, covariance, noise)
    log_p = estimate(schedule, mean, covariance, z, signs)
    np.testing.assert_allclose(log_p[:, 0], log_p[:, 1], atol=1e-4)
    # The last level is not quite noise.
    np.testing.assert_allclose(log_p[:, 0], exact(schedule, mean, covariance, z), atol=0.02)


def test_hutchinsons_trace_is_right_on_average_and_its_error_is_known():
    schedule = from_betas(linear_betas())
    mean, covariance = gaussian(1)
    noise, signs = states_and_signs()
    z = near_data(schedule, mean, covariance, noise)
    difference = (
        estimate(schedule, mean, covariance, z, signs)
        - (exact(schedule, mean, covariance, z)[:, None])
    )
    trace_error = OdeBits(difference).trace_error
    assert trace_error == pytest.approx(difference.std() / np.sqrt(difference.size), rel=0.3)
    assert 0 < abs(difference.mean()) < 3 * trace_error


def test_the_error_falls_with_the_fourth_power_of_the_steps():
    schedule = from_betas(edm_betas())
    mean, covariance = gaussian(0, correlated=False)
    noise, signs = states_and_signs()
    z = near_data(schedule, mean, covariance, noise)
    fine = estimate(schedule, mean, covariance, z, signs, steps=128)
    errors = [
        np.abs(estimate(schedule, mean, covariance, z, signs, steps=steps) - fine).max()
        for steps in (16, 32)
    ]
    assert errors[0] / errors[1] > 10


OBJECTIVE = Objective(schedule="edm", target="x0", timesteps=200)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiniteSet(Model):
    """The exact network of a finite set of images, which are its parameters."""

    def apply(self, params, xt, t, condition=None, **options):
        return mixture_x0(OBJECTIVE.noise_schedule, params["images"])(xt, t)


def test_the_bits_of_a_finite_set_are_its_entropy_in_any_batch():
    """Four images of four pixels have 2 bits: 1/2 per dimension. The bound is close, and above."""
    spec = ModelSpec(model=FiniteSet(image_size=2, channels=1), objective=OBJECTIVE)
    rng = np.random.default_rng(0)
    images = to_floats(rng.integers(0, 256, (4, 2, 2, 1), np.uint8))
    batch = {"image": images[rng.integers(0, 4, 16)]}
    params = {"images": jnp.asarray(images)}
    result = ode_bits(spec, params, batch, 64, seed=0, steps=30)
    assert result.bits.shape == (16, 2)
    assert 0.5 < result.mean < 0.6
    in_parts = ode_bits(spec, params, batch, 8, seed=0, steps=30)
    np.testing.assert_allclose(in_parts.bits, result.bits, rtol=1e-4)
    with pytest.raises(ValueError, match="The likelihood is not finite: look for NaN"):
        ode_bits(spec, {"images": params["images"] * jnp.nan}, batch, 64, seed=0, steps=30)


def test_errors_separate_images_from_sign_vectors():
    """Two sign vectors that differ by 2 have a variance of 2, and their mean one of 1."""
    bits = np.array([[0.0, 2.0], [4.0, 6.0], [8.0, 10.0]])
    result = OdeBits(bits)
    assert (result.mean, result.error) == (5, pytest.approx(4 / np.sqrt(3)))
    assert result.trace_error == pytest.approx(1 / np.sqrt(3))
