"""The bound matches float64, and the entropy of Gaussian data, for which it is tight."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion.likelihood import (
    bits_per_dim,
    bound_term,
    bound_terms,
    decoder_nll,
    prior_term,
)
from ddpm_jax.diffusion.posterior import q_posterior
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedule import (
    edm_betas,
    from_betas,
    linear_betas,
    q_sample,
    zero_terminal_snr,
)
from ddpm_jax.samplers import sample_keys

BETAS = np.linspace(0.02, 0.7, 12)
SCHEDULE = from_betas(BETAS)
VARIANCES = ["fixed_small", "fixed_large", "learned", "learned_range"]


jitted_bound_term = jax.jit(bound_term, static_argnames="variance")
jitted_decoder_nll = jax.jit(decoder_nll)


def images(seed, n=12):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 2, 2, 1)), jnp.float32)


def posterior64(betas, t, x0, xt):
    """Mean and variance of q(x_{t-1} | x_t, x_0), t = 0..T-1 (Eq. 7, Ho et al. 2020)."""
    alpha_bar = np.cumprod(1 - betas)
    alpha_bar_next = alpha_bar[t - 1] if t else 1.0
    mean = np.sqrt(alpha_bar_next) * betas[t] / (1 - alpha_bar[t]) * x0
    mean = mean + np.sqrt(1 - betas[t]) * (1 - alpha_bar_next) / (1 - alpha_bar[t]) * xt
    return mean, (1 - alpha_bar_next) / (1 - alpha_bar[t]) * betas[t]


def log_variance64(variance, betas, t, network_output):
    """The log variance of the reverse step.

    At t = 0 both fixed ones are q's at t = 1, as in the code of Ho et al.
    """
    small = np.log(posterior64(betas, max(t, 1), 0, 0)[1])
    large = np.log(betas[t])
    fraction = (network_output + 1) / 2
    return {
        "fixed_small": small,
        "fixed_large": large if t else small,
        "learned": network_output,
        "learned_range": fraction * large + (1 - fraction) * small,
    }[variance]


@pytest.mark.parametrize("betas", [BETAS, zero_terminal_snr(BETAS)], ids=["small", "zero_terminal"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_terms_are_the_kl_divergences_of_gaussians(variance, betas):
    x0 = images(0)
    x0_hat = images(1)
    eps = images(2)
    network_output = images(3)
    t = np.arange(12)
    schedule = from_betas(betas)
    xt = q_sample(schedule, x0, jnp.asarray(t), eps)
    prediction = Prediction(x0_hat, eps, network_output)
    terms = jitted_bound_term(schedule, prediction, x0, xt, jnp.asarray(t), variance)
    arrays = [np.asarray(x, float) for x in (x0, x0_hat, xt, network_output)]
    for i in t[1:]:
        x0_i, x0_hat_i, xt_i, output_i = (x[i] for x in arrays)
        mean, var = posterior64(betas, i, x0_i, xt_i)
        mean_hat, _ = posterior64(betas, i, x0_hat_i, xt_i)
        log_var = log_variance64(variance, betas, i, output_i)
        kl = 0.5 * (log_var - np.log(var) + (var + (mean - mean_hat) ** 2) / np.exp(log_var) - 1)
        np.testing.assert_allclose(terms[i], np.mean(kl) / np.log(2), rtol=2e-5)
    log_var = log_variance64(variance, betas, 0, np.asarray(network_output[0]))
    log_var = np.broadcast_to(log_var, (1, 2, 2, 1))
    nll = jitted_decoder_nll(x0[:1], x0_hat[:1], jnp.asarray(log_var, jnp.float32))
    np.testing.assert_allclose(terms[0], np.mean(nll) / np.log(2), rtol=2e-5)


def test_the_exact_x0_and_posterior_variance_give_no_divergence():
    x0 = images(0)
    eps = images(2)
    t = jnp.arange(12)
    xt = q_sample(SCHEDULE, x0, t, eps)
    _, variance = q_posterior(SCHEDULE, x0, xt, t)
    log_var = jnp.broadcast_to(jnp.log(jnp.maximum(variance, 1e-6)), x0.shape)
    terms = jitted_bound_term(SCHEDULE, Prediction(x0, eps, log_var), x0, xt, t, "learned")
    np.testing.assert_allclose(terms[1:], 0, atol=1e-6)


def test_a_learned_variance_needs_a_network_that_predicts_it():
    x0 = images(0)
    message = "does not predict the variance: use variance fixed_small or fixed_large"
    with pytest.raises(ValueError, match=message):
        bound_term(SCHEDULE, Prediction(x0, x0), x0, x0, jnp.arange(12), "learned")


@pytest.mark.parametrize("variance", ["fixed-large", "learned_rnage"])
def test_an_unknown_variance_is_refused(variance, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x0 = images(0)
    with pytest.raises(ValueError, match=f"Unknown variance '{variance}': choose one of fixed_sma"):
        bound_term(SCHEDULE, Prediction(x0, x0, x0), x0, x0, jnp.arange(12), variance)


# The decoder

LEVELS = np.linspace(-1, 1, 256)


def bin_mass64(x, mean, std):
    """The mass of a Gaussian in the bin of x, by the error function (Eq. 13, Ho et al. 2020)."""
    low = -math.inf if x < -0.999 else x - 1 / 255
    high = math.inf if x > 0.999 else x + 1 / 255
    z_low = (low - mean) / std / math.sqrt(2)
    z_high = (high - mean) / std / math.sqrt(2)
    if z_low > 0:
        return (math.erfc(z_low) - math.erfc(z_high)) / 2
    return (math.erfc(-z_high) - math.erfc(-z_low)) / 2


def every_case_at_every_level(cases, levels):
    """x, mean and log variance, each (1, cases, levels, 1), for cases of (mean, std)."""
    shape = (1, len(cases), len(levels), 1)
    means, stds = np.array(cases).T[:, None, :, None, None]
    arrays = (levels[None, None, :, None], means, 2 * np.log(stds))
    return [jnp.asarray(np.broadcast_to(array, shape), jnp.float32) for array in arrays]


def test_the_decoder_gives_the_mass_of_each_bin():
    means = (-1.2, -0.3, 0.0, 0.999, 1.0)
    stds = (0.001, 0.004, 0.05, 0.5, 5.0)
    cases = [(mean, std) for mean in means for std in stds]
    nll = jitted_decoder_nll(*every_case_at_every_level(cases, LEVELS))
    nll = np.asarray(nll, float)[0, :, :, 0]
    for case, case_nll in zip(cases, nll, strict=True):
        name = f"mean and std {case}"
        mass = np.array([bin_mass64(x, *case) for x in LEVELS])
        # Smaller masses come near the underflow of float64.
        normal = mass > 1e-250
        assert normal.any(), name
        expected = -np.log(mass[normal])
        np.testing.assert_allclose(case_nll[normal], expected, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(np.exp(-case_nll).sum(), 1, rtol=1e-4, err_msg=name)


def test_the_decoder_and_its_gradient_are_finite_for_any_mean():
    cases = [(-300.0, 1e-3), (300.0, 1e-3), (0.0, 1e-4), (0.0, 1e4)]
    x, mean, log_var = every_case_at_every_level(cases, LEVELS[[0, 1, 128, 254, 255]])

    def total_nll(mean, log_var):
        return jnp.sum(decoder_nll(x, mean, log_var))

    nll, grads = jax.jit(jax.value_and_grad(total_nll, (0, 1)))(mean, log_var)
    assert np.isfinite(nll)
    for grad in grads:
        for case, row in zip(cases, np.asarray(grad)[0], strict=True):
            assert np.all(np.isfinite(row)), case


# Gaussian data, for which the exact denoiser is known

STD = 0.2
ENTROPY = np.log2(STD * np.sqrt(2 * np.pi * np.e))
# The bits per dimension at 8 bits in [-1, 1] are the differential entropy plus these.
BIN = np.log2(255 / 2)


def exact_denoiser(schedule, xt, t):
    """E[x0 | xt], and the log variance of p(x_{t-1} | x_t).

    That variance is q's plus the one that the uncertainty of x0 given xt adds.
    """
    signal, noise = (table.reshape(1, 1, 1, 1) for table in schedule.signal_and_noise(t))
    signal_next = jnp.concatenate([jnp.ones(1), schedule.sqrt_alpha_bar])[t]
    noise_next = jnp.concatenate([jnp.zeros(1), schedule.sqrt_one_minus_alpha_bar])[t]
    beta = schedule.beta[t]
    total = (signal * STD) ** 2 + noise**2
    x0 = signal * STD**2 / total * xt
    x0_variance = (STD * noise) ** 2 / total
    variance = (noise_next / noise) ** 2 * beta + (signal_next * beta / noise**2) ** 2 * x0_variance
    return Prediction(x0, (xt - signal * x0) / noise, jnp.broadcast_to(jnp.log(variance), xt.shape))


def gaussian_images(n):
    x0 = STD * np.random.default_rng(7).standard_normal((n, 8, 8, 1))
    return jnp.asarray(x0, jnp.float32)


class Bound(NamedTuple):
    """The parts of a `VariationalBound` as NumPy arrays."""

    total: np.ndarray
    prior: np.ndarray
    decoder: np.ndarray
    terms: np.ndarray


@partial(jax.jit, static_argnames="variance")
def jitted_bound(keys, schedule, x0, variance):
    bound = bits_per_dim(keys, schedule, Partial(exact_denoiser, schedule), x0, variance)
    return Bound(bound.total, bound.prior, bound.decoder, bound.terms)


def measure(keys, schedule, x0, variance="fixed_small"):
    """The bound of images with the exact denoiser."""
    return jax.device_get(jitted_bound(keys, schedule, x0, variance))


@pytest.mark.parametrize("T", [1, 2, 20])
def test_the_bound_of_the_exact_reverse_step_is_the_entropy_for_any_number_of_steps(T):
    """p(x_{t-1} | x_t) is then the Gaussian q(x_{t-1} | x_t), so the bound is tight."""
    noise = np.geomspace(0.05, 1 - 1e-6, T) if T > 1 else np.array([1 - 1e-6])
    alpha_bar = 1 - noise**2
    schedule = from_betas(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    x0 = gaussian_images(256)
    keys = sample_keys(0, jnp.arange(256))
    bound = measure(keys, schedule, x0, "learned")
    # The bound estimates -log p(x0) of these images, which varies around the entropy.
    nll = 0.5 * (np.asarray(x0, float) / STD) ** 2 + np.log(STD * np.sqrt(2 * np.pi))
    excess = bound.total - np.mean(nll, (1, 2, 3)) / np.log(2) - BIN
    assert abs(np.mean(excess)) < 5 * np.std(excess) / np.sqrt(256) + 5e-4
    assert abs(np.mean(bound.total) - ENTROPY - BIN) < 5 * np.std(bound.total) / np.sqrt(256) + 5e-4
    assert np.std(excess) < 0.5
    np.testing.assert_allclose(bound.decoder, bound.terms[:, 0])
    assert bound.terms.shape == (256, T)


def terms64(betas):
    """E[L_t], t = 1..T-1, in bits, of the exact denoiser with fixed_small.

    Only the error of the mean contributes.
    """
    alpha_bar = np.cumprod(1 - betas)
    alpha_bar_next = alpha_bar[:-1]
    alpha_bar = alpha_bar[1:]
    beta = betas[1:]
    variance = (1 - alpha_bar_next) / (1 - alpha_bar) * beta
    x0_variance = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    error = (np.sqrt(alpha_bar_next) * beta / (1 - alpha_bar)) ** 2 * x0_variance
    return error / (2 * variance) / np.log(2)


BETAS_20 = {
    "large": np.linspace(0.02, 0.7, 20),
    "linear": linear_betas(20, 1e-3, 0.4),
    "edm": edm_betas(20),
}


@pytest.mark.parametrize("betas", BETAS_20.values(), ids=BETAS_20)
def test_each_term_of_gaussian_data_matches_its_closed_form(betas):
    schedule = from_betas(betas)
    x0 = gaussian_images(512)
    keys = sample_keys(1, jnp.arange(512))
    bound = measure(keys, schedule, x0)
    terms = np.mean(bound.terms, 0)[1:]
    error = np.std(bound.terms, 0)[1:] / np.sqrt(512)
    assert np.all(np.abs(terms - terms64(betas)) < 5 * error + 1e-7)
    assert np.all(error < 0.02 * terms + 1e-7)
    alpha_bar = np.prod(1 - betas)
    mean_square = np.mean(np.asarray(x0, float) ** 2, (1, 2, 3))
    prior = 0.5 * (alpha_bar * mean_square - alpha_bar - np.log(1 - alpha_bar)) / np.log(2)
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(bound.total, bound.prior + np.sum(bound.terms, 1), rtol=1e-6)


def test_the_excess_of_fixed_small_falls_with_the_number_of_steps():
    """fixed_small is below the reverse step's variance, the less so the shorter the steps.

    The bound exceeds the information about the data at the first noise level by O(1 / T).
    """
    # Bits of x_0 at sigma = 0.002 about the data
    information = 0.5 * np.log2(1 + (STD / 0.002) ** 2)
    excess = [terms64(edm_betas(T)).sum() - information for T in (128, 256, 512, 1024)]
    np.testing.assert_allclose(np.divide(excess[:-1], excess[1:]), 2, rtol=0.05)
    schedule = from_betas(edm_betas(256))
    x0 = gaussian_images(32)
    keys = sample_keys(0, jnp.arange(32))
    bound = measure(keys, schedule, x0)
    without_decoder = bound.total - bound.decoder
    error = np.std(without_decoder) / np.sqrt(32)
    assert abs(np.mean(without_decoder) - information - excess[1]) < 5 * error


# All timesteps of the bound


def test_noise_differs_at_every_timestep_and_depends_on_the_images_key_alone():
    x0 = jnp.zeros((3, 2, 2, 1))
    keys = sample_keys(0, jnp.arange(3))
    calls = []

    def denoise(xt, t):
        jax.debug.callback(lambda xt, t: calls.append((int(t), np.array(xt))), xt, t)
        return Prediction(xt, xt)

    denoise = Partial(denoise)
    whole = bits_per_dim(keys, SCHEDULE, denoise, x0)
    jax.effects_barrier()
    eps = np.stack([xt for _, xt in sorted(calls, key=lambda call: call[0])])
    eps = eps / np.asarray(SCHEDULE.sqrt_one_minus_alpha_bar).reshape(-1, 1, 1, 1, 1)
    assert len(np.unique(eps.round(4))) == eps.size
    parts = [bound_terms(keys, SCHEDULE, denoise, x0, jnp.arange(i, i + 4)) for i in (0, 4, 8)]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole.terms, rtol=1e-5)
    alone = bits_per_dim(keys[1:2], SCHEDULE, denoise, x0[1:2])
    np.testing.assert_allclose(alone.terms[0], whole.terms[1], rtol=1e-5)


def test_the_bound_compiles_once_for_all_timesteps_and_parameters():
    traces = []

    def denoise(w, xt, t):
        traces.append(1)
        return Prediction(w * xt, xt)

    keys = sample_keys(0, jnp.arange(2))
    x0 = images(0, 2)
    for w in (0.1, 0.2):
        bits_per_dim(keys, SCHEDULE, Partial(denoise, jnp.float32(w)), x0)
    assert len(traces) == 1


def test_the_prior_term_matches_its_closed_form_at_the_last_timestep():
    x0 = jnp.full((1, 2, 2, 1), 0.5)
    np.testing.assert_array_equal(prior_term(from_betas(zero_terminal_snr(BETAS)), x0), [0.0])
    (prior,) = prior_term(SCHEDULE, x0)
    alpha_bar = np.prod(1 - BETAS)
    mean = np.sqrt(alpha_bar) * 0.5
    variance = 1 - alpha_bar
    expected = (mean**2 + variance - 1 - np.log(variance)) / 2 / np.log(2)
    np.testing.assert_allclose(prior, expected, rtol=1e-4)
