"""The bound against float64, and against the entropy of Gaussian data, where it is tight."""

import math

import jax
import jax.numpy as jnp
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


terms_of = jax.jit(bound_term, static_argnames="variance")
nll_of = jax.jit(decoder_nll)


def images(seed, count=12, shape=(2, 2, 1)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *shape)), jnp.float32)


def posterior64(betas, t, x0, xt):
    """Mean and variance of q(x_{t-1} | x_t, x_0), t = 0..T-1 (Eq. 7, Ho et al. 2020)."""
    alpha_bar = np.cumprod(1 - betas)
    before = alpha_bar[t - 1] if t else 1.0
    mean = np.sqrt(before) * betas[t] / (1 - alpha_bar[t]) * x0
    mean = mean + np.sqrt(1 - betas[t]) * (1 - before) / (1 - alpha_bar[t]) * xt
    return mean, (1 - before) / (1 - alpha_bar[t]) * betas[t]


def log_variance64(variance, betas, t, said):
    """The log variance of the reverse step; at t = 0 both fixed ones are q's at t = 1, as in Ho et al.'s code."""
    small = np.log(posterior64(betas, max(t, 1), 0, 0)[1])
    large = np.log(betas[t])
    share = (said + 1) / 2
    return {
        "fixed_small": small,
        "fixed_large": large if t else small,
        "learned": said,
        "learned_range": share * large + (1 - share) * small,
    }[variance]


@pytest.mark.parametrize("betas", [BETAS, zero_terminal_snr(BETAS)], ids=["small", "zero_terminal"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_terms_are_the_divergences_of_gaussians(variance, betas):
    x0, x0_hat, eps, said, t = images(0), images(1), images(2), images(3), np.arange(12)
    schedule = from_betas(betas)
    xt = q_sample(schedule, x0, jnp.asarray(t), eps)
    found = terms_of(schedule, Prediction(x0_hat, eps, said), x0, xt, jnp.asarray(t), variance)
    exact = [np.asarray(x, float) for x in (x0, x0_hat, xt, said)]
    for i in t[1:]:
        a, b, c, d = (x[i] for x in exact)
        (mean, var), (mean_hat, _) = posterior64(betas, i, a, c), posterior64(betas, i, b, c)
        log_var = log_variance64(variance, betas, i, d)
        kl = 0.5 * (log_var - np.log(var) + (var + (mean - mean_hat) ** 2) / np.exp(log_var) - 1)
        np.testing.assert_allclose(found[i], np.mean(kl) / np.log(2), rtol=2e-5)
    log_var = np.broadcast_to(log_variance64(variance, betas, 0, np.asarray(said[0])), (1, 2, 2, 1))
    nll = nll_of(x0[:1], x0_hat[:1], jnp.asarray(log_var, jnp.float32))
    np.testing.assert_allclose(found[0], np.mean(nll) / np.log(2), rtol=2e-5)


def test_the_mean_of_the_reverse_step_is_that_of_the_posterior():
    """A learned variance as q's own, and the right x0: no divergence at all."""
    x0, eps, t = images(0), images(2), jnp.arange(12)
    xt = q_sample(SCHEDULE, x0, t, eps)
    _, variance = q_posterior(SCHEDULE, x0, xt, t)
    said = jnp.broadcast_to(jnp.log(jnp.maximum(variance, 1e-6)), x0.shape)
    found = terms_of(SCHEDULE, Prediction(x0, eps, said), x0, xt, t, "learned")
    np.testing.assert_allclose(found[1:], 0, atol=1e-6)


def test_a_network_that_says_no_variance_has_none():
    x0 = images(0)
    with pytest.raises(
        ValueError, match="says nothing of the variance: use variance fixed_small or fixed_large"
    ):
        bound_term(SCHEDULE, Prediction(x0, x0), x0, x0, jnp.arange(12), "learned")


# The decoder

LEVELS = np.linspace(-1, 1, 256)


def mass64(x, mean, std):
    """The mass of a Gaussian in the bin of x, by the error function (Eq. 13, Ho et al. 2020)."""
    low = -math.inf if x < -0.999 else x - 1 / 255
    high = math.inf if x > 0.999 else x + 1 / 255
    z = [(edge - mean) / std / math.sqrt(2) for edge in (low, high)]
    return (
        (math.erfc(z[0]) - math.erfc(z[1])) / 2
        if z[0] > 0
        else (math.erfc(-z[1]) - math.erfc(-z[0])) / 2
    )


def gaussians(cases, levels):
    """x, mean and log variance of every level (1, cases, levels, 1)."""
    shape = 1, len(cases), len(levels), 1
    means, stds = np.array(cases).T[:, None, :, None, None]
    tables = levels[None, None, :, None], means, 2 * np.log(stds)
    return [jnp.asarray(np.broadcast_to(table, shape), jnp.float32) for table in tables]


def test_the_decoder_is_the_mass_of_each_bin():
    means, stds = (-1.2, -0.3, 0.0, 0.999, 1.0), (0.001, 0.004, 0.05, 0.5, 5.0)
    cases = [(mean, std) for mean in means for std in stds]
    nll = np.asarray(nll_of(*gaussians(cases, LEVELS)), float)[0, :, :, 0]
    for case, found in zip(cases, nll, strict=True):
        wanted = np.array([mass64(x, *case) for x in LEVELS])
        seen, name = wanted > 1e-250, f"mean and std {case}"
        assert seen.any(), name
        wanted = -np.log(wanted[seen])
        np.testing.assert_allclose(found[seen], wanted, rtol=2e-4, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(np.exp(-found).sum(), 1, rtol=1e-4, err_msg=name)


def test_the_decoder_is_finite_and_so_is_its_gradient_however_wrong():
    cases = [(-300.0, 1e-3), (300.0, 1e-3), (0.0, 1e-4), (0.0, 1e4)]
    x, mean, log_var = gaussians(cases, LEVELS[[0, 1, 128, 254, 255]])
    grad = jax.jit(jax.value_and_grad(lambda m, v: jnp.sum(decoder_nll(x, m, v)), (0, 1)))
    nll, grads = grad(mean, log_var)
    assert np.isfinite(nll)
    for values in grads:
        for case, row in zip(cases, np.asarray(values)[0], strict=True):
            assert np.all(np.isfinite(row)), case


# Gaussian data, whose exact denoiser is known

STD = 0.2
ENTROPY = np.log2(STD * np.sqrt(2 * np.pi * np.e))
BIN = np.log2(255 / 2)  # bits of a dimension in [-1, 1] at 8 bits over its differential entropy


def exact(schedule, xt, t):
    """E[x0 | xt], and the log variance of p(x_{t-1} | x_t): that of q, and of what is not known of x0 given xt."""
    signal, noise = (table.reshape(1, 1, 1, 1) for table in schedule.signal_and_noise(t))
    before = (
        jnp.concatenate([jnp.ones(1), schedule.sqrt_alpha_bar])[t],
        jnp.concatenate([jnp.zeros(1), schedule.sqrt_one_minus_alpha_bar])[t],
    )
    total = (signal * STD) ** 2 + noise**2
    x0 = signal * STD**2 / total * xt
    unknown = (STD * noise) ** 2 / total
    variance = (before[1] / noise) ** 2 * schedule.beta[t] + (
        before[0] * schedule.beta[t] / noise**2
    ) ** 2 * unknown
    return Prediction(x0, (xt - signal * x0) / noise, jnp.broadcast_to(jnp.log(variance), xt.shape))


def gaussian(count):
    x0 = STD * np.random.default_rng(7).standard_normal((count, 8, 8, 1))
    return jnp.asarray(x0, jnp.float32)


@pytest.mark.parametrize("T", [1, 2, 20])
def test_with_the_exact_reverse_step_the_bound_is_the_entropy_for_any_number_of_steps(T):
    """Then p(x_{t-1} | x_t) is q(x_{t-1} | x_t), itself Gaussian, so that nothing is lost."""
    noise = np.geomspace(0.05, 1 - 1e-6, T) if T > 1 else np.array([1 - 1e-6])
    alpha_bar = 1 - noise**2
    schedule = from_betas(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    x0 = gaussian(256)
    bound = bits_per_dim(
        sample_keys(0, jnp.arange(256)), schedule, Partial(exact, schedule), x0, "learned"
    )
    # What is sampled is not the entropy but -log p(x0) of these very images.
    likelihood = np.mean(
        0.5 * (np.asarray(x0, float) / STD) ** 2 + np.log(STD * np.sqrt(2 * np.pi)), (1, 2, 3)
    )
    excess = np.asarray(bound.total) - likelihood / np.log(2) - BIN
    assert abs(np.mean(excess)) < 5 * np.std(excess) / np.sqrt(256) + 5e-4
    assert abs(np.mean(bound.total) - ENTROPY - BIN) < 5 * np.std(bound.total) / np.sqrt(256) + 5e-4
    assert np.std(excess) < 0.5
    np.testing.assert_allclose(bound.decoder, bound.terms[:, 0])
    assert bound.terms.shape == (256, T)


def terms64(betas):
    """E[L_t] of the exact denoiser with fixed_small, t = 1..T-1: the mean's error alone, in bits."""
    alpha_bar = np.cumprod(1 - betas)
    before, after = alpha_bar[:-1], alpha_bar[1:]
    variance = (1 - before) / (1 - after) * betas[1:]
    unknown = STD**2 * (1 - after) / (after * STD**2 + 1 - after)
    return (np.sqrt(before) * betas[1:] / (1 - after)) ** 2 * unknown / (2 * variance) / np.log(2)


OF_20 = {
    "large": np.linspace(0.02, 0.7, 20),
    "linear": linear_betas(20, 1e-3, 0.4),
    "edm": edm_betas(20),
}


@pytest.mark.parametrize("betas", OF_20.values(), ids=OF_20)
def test_each_term_of_gaussian_data_is_its_closed_form(betas):
    schedule, x0 = from_betas(betas), gaussian(512)
    bound = bits_per_dim(sample_keys(1, jnp.arange(512)), schedule, Partial(exact, schedule), x0)
    found, error = np.mean(bound.terms, 0)[1:], np.std(bound.terms, 0)[1:] / np.sqrt(512)
    assert np.all(np.abs(found - terms64(betas)) < 5 * error + 1e-7)
    assert np.all(error < 0.02 * found + 1e-7)
    alpha_bar = np.prod(1 - betas)
    mean_square = np.mean(np.asarray(x0, float) ** 2, (1, 2, 3))
    prior = 0.5 * (alpha_bar * mean_square - alpha_bar - np.log(1 - alpha_bar)) / np.log(2)
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(bound.total, bound.prior + np.sum(bound.terms, 1), rtol=1e-6)


def test_more_steps_come_nearer_to_the_information_of_the_first_noise_level():
    """With fixed_small the reverse steps are too sure, the less so the shorter they are: the excess goes with 1 / T."""
    information = 0.5 * np.log2(1 + (STD / 0.002) ** 2)  # of x_0 at sigma = 0.002 about the data
    excess = [terms64(edm_betas(T)).sum() - information for T in (128, 256, 512, 1024)]
    np.testing.assert_allclose(np.divide(excess[:-1], excess[1:]), 2, rtol=0.05)
    schedule, x0 = from_betas(edm_betas(256)), gaussian(32)
    bound = bits_per_dim(sample_keys(0, jnp.arange(32)), schedule, Partial(exact, schedule), x0)
    found = np.asarray(bound.total - bound.decoder)
    assert abs(np.mean(found) - information - excess[1]) < 5 * np.std(found) / np.sqrt(32)


# Walking the timesteps


def test_the_noise_of_an_image_is_its_own_and_another_at_every_t():
    x0, keys, seen = jnp.zeros((3, 2, 2, 1)), sample_keys(0, jnp.arange(3)), []

    def denoise(xt, t):
        jax.debug.callback(lambda xt, t: seen.append((int(t), np.array(xt))), xt, t)
        return Prediction(xt, xt)

    whole = bits_per_dim(keys, SCHEDULE, denoise, x0)
    jax.effects_barrier()
    eps = np.stack([xt for _, xt in sorted(seen, key=lambda pair: pair[0])])
    eps = eps / np.asarray(SCHEDULE.sqrt_one_minus_alpha_bar).reshape(-1, 1, 1, 1, 1)
    assert len(np.unique(eps.round(4))) == eps.size
    parts = [bound_terms(keys, SCHEDULE, denoise, x0, jnp.arange(i, i + 4)) for i in (0, 4, 8)]
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole.terms, rtol=1e-5)
    alone = bits_per_dim(keys[1:2], SCHEDULE, denoise, x0[1:2])
    np.testing.assert_allclose(alone.terms[0], whole.terms[1], rtol=1e-5)


def test_all_timesteps_are_one_program_whatever_the_parameters():
    traced = []

    def denoise(w, xt, t):
        traced.append(1)
        return Prediction(w * xt, xt)

    keys, x0 = sample_keys(0, jnp.arange(2)), images(0, 2)
    for w in (0.1, 0.2):
        bits_per_dim(keys, SCHEDULE, Partial(denoise, jnp.float32(w)), x0)
    assert len(traced) == 1


def test_the_prior_is_that_of_the_last_timestep():
    x0 = jnp.full((1, 2, 2, 1), 0.5)
    np.testing.assert_array_equal(prior_term(from_betas(zero_terminal_snr(BETAS)), x0), [0.0])
    (found,) = prior_term(SCHEDULE, x0)
    alpha_bar = np.prod(1 - BETAS)
    mean, variance = np.sqrt(alpha_bar) * 0.5, 1 - alpha_bar
    np.testing.assert_allclose(
        found, (mean**2 + variance - 1 - np.log(variance)) / 2 / np.log(2), rtol=1e-4
    )
