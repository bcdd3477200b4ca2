"""L_vlb is the bound's terms, L_hybrid what it is made of, a learned variance that of the true reverse step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.losses import STD, gaussian, keys
from jax.tree_util import Partial

from ddpm_jax.diffusion.likelihood import bound_terms
from ddpm_jax.diffusion.losses import draw_xt, hybrid_loss, simple_loss, vlb_loss
from ddpm_jax.diffusion.posterior import q_posterior
from ddpm_jax.diffusion.prediction import make_denoiser, split_output
from ddpm_jax.diffusion.schedule import from_betas, per_example
from ddpm_jax.samplers import sample_keys

SMALL = from_betas(np.linspace(0.05, 0.8, 8))


def two_outputs(params, xt, t):
    return jnp.concatenate([params["mean"] * xt, params["said"] + 0.1 * jnp.tanh(xt)], -1)


PARAMS = {"mean": jnp.float32(0.4), "said": jnp.float32(-0.3)}


def value_and_grad(loss, *rest, **options):
    """Of the mean over 16 images, by the parameters of `two_outputs`."""
    x0 = gaussian(16)

    def mean(params):
        network = Partial(two_outputs, params)
        return jnp.mean(loss(keys(16), SMALL, network, x0, "v", *rest, **options))

    return jax.jit(jax.value_and_grad(mean))(PARAMS)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_l_hybrid_teaches_the_mean_by_l_simple_and_the_variance_by_a_thousandth_of_l_vlb(variance):
    weight = jnp.linspace(0.5, 2.0, 16)
    hybrid, by_hybrid = value_and_grad(hybrid_loss, variance, weight=weight)
    simple, by_simple = value_and_grad(simple_loss, weight=weight)
    vlb, by_vlb = value_and_grad(vlb_loss, variance)
    np.testing.assert_allclose(hybrid, simple + 0.001 * vlb, rtol=1e-6)
    np.testing.assert_allclose(by_hybrid["mean"], by_simple["mean"], rtol=1e-6)
    np.testing.assert_allclose(by_hybrid["said"], 0.001 * by_vlb["said"], rtol=1e-5)
    assert by_simple["said"] == 0
    assert abs(by_vlb["mean"]) > 1e-3


def test_l_vlb_at_every_t_is_the_sum_of_the_bounds_terms():
    """In bits a dimension: T times the mean over t."""
    x0, network = gaussian(8 * 32), lambda xt, t: two_outputs(PARAMS, xt, t)
    t = jnp.tile(jnp.arange(8), 32)
    vlb = jax.jit(lambda keys, x0, t=None: vlb_loss(keys, SMALL, network, x0, "v", t=t))
    found = vlb(keys(len(x0)), x0, t).reshape(32, 8)
    denoise = make_denoiser(SMALL, network, "v", None)
    terms = bound_terms(
        sample_keys(0, jnp.arange(len(x0))), SMALL, denoise, x0, jnp.arange(8), "learned_range"
    )
    error = np.sqrt(np.var(found, 0) / 32 + 64 * np.var(terms, 0) / len(x0))
    assert np.all(np.abs(np.mean(found, 0) - 8 * np.mean(terms, 0)) < 5 * error)
    uniform = vlb(keys(2000, 5), gaussian(2000))
    assert (
        abs(np.mean(uniform) - np.sum(np.mean(terms, 0)))
        < 5 * np.std(uniform) / np.sqrt(2000) + 0.02
    )


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_learned_variance_comes_to_that_of_the_true_reverse_step(variance):
    """Of Gaussian data and the exact mean: q(x_{t-1} | x_t), whose variance is known."""
    t, x0 = jnp.tile(jnp.arange(1, 8), 48), gaussian(7 * 48)
    signal, noise = SMALL.signal_and_noise(jnp.arange(8))
    slope = signal * STD**2 / ((signal * STD) ** 2 + noise**2)

    def network(said, xt, t):
        return jnp.concatenate(
            [per_example(slope[t], xt) * xt, jnp.broadcast_to(per_example(said[t], xt), xt.shape)],
            -1,
        )

    def loss(said):
        return jnp.mean(
            hybrid_loss(
                keys(len(x0)), SMALL, lambda xt, t: network(said, xt, t), x0, "x0", variance, t=t
            )
        )

    tx = optax.adam(0.05)

    def step(state, _):
        said, opt_state = state
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(jax.grad(loss)(said), opt_state)
        return (said + updates, opt_state), None

    said, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, 300)[0])(
        (jnp.zeros(8), tx.init(jnp.zeros(8)))
    )
    alpha_bar = np.cumprod(1 - np.linspace(0.05, 0.8, 8))
    beta, before, after = np.linspace(0.05, 0.8, 8)[1:], alpha_bar[:-1], alpha_bar[1:]
    small = (1 - before) / (1 - after) * beta
    unknown = STD**2 * (1 - after) / (after * STD**2 + 1 - after)
    true = np.log(small + before * (beta / (1 - after)) ** 2 * unknown)
    wanted = (
        true if variance == "learned" else 2 * (true - np.log(small)) / np.log(beta / small) - 1
    )
    scale = 1 if variance == "learned" else 2 / np.log(beta / small)
    np.testing.assert_array_less(
        np.abs(said[1:] - wanted), scale * 5 * np.sqrt(2 / (48 * 16)) + 0.01
    )


def test_what_is_said_of_the_variance_does_not_change_l_simple():
    x0 = gaussian(8)
    both = simple_loss(keys(8), SMALL, lambda xt, t: two_outputs(PARAMS, xt, t), x0, "v")
    alone = simple_loss(keys(8), SMALL, lambda xt, t: PARAMS["mean"] * xt, x0, "v")
    np.testing.assert_array_equal(both, alone)
    assert split_output(x0, x0)[1] is None


def test_the_reverse_step_at_each_t_is_q_posterior():
    """An exact x0 and fixed_small: no divergence but at t = 0, so that a wrong stride or t would show."""
    x0 = gaussian(8)
    xt, _ = draw_xt(keys(8), SMALL, x0, jnp.arange(8))
    vlb = jax.jit(
        lambda x0_hat: vlb_loss(
            keys(8), SMALL, lambda xt, t: x0_hat, x0, "x0", "fixed_small", t=jnp.arange(8)
        )
    )
    found = vlb(x0)
    np.testing.assert_allclose(found[1:], 0, atol=1e-5)
    off = vlb(x0 + 0.1)
    mean, variance = q_posterior(SMALL, x0, xt, jnp.arange(8))
    shift = q_posterior(SMALL, x0 + 0.1, xt, jnp.arange(8))[0] - mean
    wanted = 8 * jnp.mean(shift**2 / (2 * jnp.maximum(variance, 1e-9)), (1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(off[1:], wanted[1:], rtol=1e-3)
