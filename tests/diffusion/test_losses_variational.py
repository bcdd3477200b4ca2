"""L_vlb sums the bound's terms, L_hybrid adds it to L_simple, a learned variance becomes exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.losses import STD, example_keys, gaussian_images
from jax.tree_util import Partial

from ddpm_jax.diffusion.likelihood import bound_terms
from ddpm_jax.diffusion.losses import draw_xt, hybrid_loss, simple_loss, vlb_loss
from ddpm_jax.diffusion.posterior import q_posterior
from ddpm_jax.diffusion.prediction import make_denoiser, split_output
from ddpm_jax.diffusion.schedule import from_betas, per_example
from ddpm_jax.samplers import sample_keys

SMALL_BETAS = np.linspace(0.05, 0.8, 8)
SMALL = from_betas(SMALL_BETAS)


def two_outputs(params, xt, t):
    """A network with an output for v and one for the log variance."""
    return jnp.concatenate([params["mean"] * xt, params["log_var"] + 0.1 * jnp.tanh(xt)], -1)


PARAMS = {"mean": jnp.float32(0.4), "log_var": jnp.float32(-0.3)}


@partial(jax.jit, static_argnums=0)
def values_and_grads(variance, keys, x0, weight):
    """The means of L_hybrid, L_simple and L_vlb, and their gradients in PARAMS."""

    def value_and_grad(loss, *arguments, **options):
        def mean_loss(params):
            network = Partial(two_outputs, params)
            return jnp.mean(loss(keys, SMALL, network, x0, "v", *arguments, **options))

        return jax.value_and_grad(mean_loss)(PARAMS)

    hybrid = value_and_grad(hybrid_loss, variance, weight=weight)
    return hybrid, value_and_grad(simple_loss, weight=weight), value_and_grad(vlb_loss, variance)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_l_hybrid_trains_the_mean_by_l_simple_and_the_variance_by_l_vlb(variance):
    weight = np.linspace(0.5, 2.0, 16, dtype=np.float32)
    outputs = values_and_grads(variance, example_keys(16), gaussian_images(16), weight)
    (hybrid, hybrid_grad), (simple, simple_grad), (vlb, vlb_grad) = jax.device_get(outputs)
    np.testing.assert_allclose(hybrid, simple + 0.001 * vlb, rtol=1e-6)
    np.testing.assert_allclose(hybrid_grad["mean"], simple_grad["mean"], rtol=1e-6)
    np.testing.assert_allclose(hybrid_grad["log_var"], 0.001 * vlb_grad["log_var"], rtol=1e-5)
    assert simple_grad["log_var"] == 0
    assert abs(vlb_grad["mean"]) > 1e-3


def test_the_mean_of_l_vlb_over_t_is_the_sum_of_the_bounds_terms():
    x0 = gaussian_images(8 * 32)
    t = jnp.asarray(np.tile(np.arange(8, dtype=np.int32), 32))

    def network(xt, t):
        return two_outputs(PARAMS, xt, t)

    vlb = jax.jit(lambda keys, x0, t=None: vlb_loss(keys, SMALL, network, x0, "v", t=t))
    by_timestep = np.reshape(vlb(example_keys(len(x0)), x0, t), (32, 8))
    denoise = make_denoiser(SMALL, network, "v", None)
    keys = sample_keys(0, jnp.arange(len(x0)))
    terms = np.asarray(bound_terms(keys, SMALL, denoise, x0, jnp.arange(8), "learned_range"))
    error = np.sqrt(np.var(by_timestep, 0) / 32 + 64 * np.var(terms, 0) / len(x0))
    assert np.all(np.abs(np.mean(by_timestep, 0) - 8 * np.mean(terms, 0)) < 5 * error)
    uniform = np.asarray(vlb(example_keys(2000, 5), gaussian_images(2000)))
    difference = abs(np.mean(uniform) - np.sum(np.mean(terms, 0)))
    assert difference < 5 * np.std(uniform) / np.sqrt(2000) + 0.02


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_learned_variance_converges_to_the_true_reverse_steps(variance):
    """Gaussian images with the exact mean: the variance of q(x_{t-1} | x_t) is known."""
    t = jnp.asarray(np.tile(np.arange(1, 8, dtype=np.int32), 48))
    x0 = gaussian_images(7 * 48)
    signal, noise = np.asarray(SMALL.signal_and_noise(jnp.arange(8)))
    slope = jnp.asarray(signal * STD**2 / ((signal * STD) ** 2 + noise**2))

    def network(log_var, xt, t):
        output = per_example(slope[t], xt) * xt
        variance_output = jnp.broadcast_to(per_example(log_var[t], xt), xt.shape)
        return jnp.concatenate([output, variance_output], -1)

    def loss(log_var):
        keys = example_keys(len(x0))
        per_example_loss = hybrid_loss(
            keys, SMALL, partial(network, log_var), x0, "x0", variance, t=t
        )
        return jnp.mean(per_example_loss)

    tx = optax.adam(0.1)

    def step(state, _):
        log_var, opt_state = state
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(jax.grad(loss)(log_var), opt_state)
        return (log_var + updates, opt_state), None

    train = jax.jit(lambda state: jax.lax.scan(step, state, None, 150)[0])
    log_var = np.asarray(train((jnp.zeros(8), tx.init(jnp.zeros(8))))[0])

    alpha_bar = np.cumprod(1 - SMALL_BETAS)
    alpha_bar_next = alpha_bar[:-1]
    alpha_bar = alpha_bar[1:]
    beta = SMALL_BETAS[1:]
    posterior_variance = (1 - alpha_bar_next) / (1 - alpha_bar) * beta
    x0_variance = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    true_log_var = np.log(
        posterior_variance + alpha_bar_next * (beta / (1 - alpha_bar)) ** 2 * x0_variance
    )
    if variance == "learned":
        expected = true_log_var
        scale = 1
    else:
        # The output in [-1, 1] interpolates between the logs of the posterior variance and beta.
        scale = 2 / np.log(beta / posterior_variance)
        above_small = true_log_var - np.log(posterior_variance)
        expected = 2 * above_small / np.log(beta / posterior_variance) - 1
    np.testing.assert_array_less(
        np.abs(log_var[1:] - expected), scale * 5 * np.sqrt(2 / (48 * 16)) + 0.01
    )


def test_l_simple_ignores_the_output_for_the_variance():
    x0 = gaussian_images(8)
    keys = example_keys(8)

    @jax.jit
    def losses(keys, x0):
        both = simple_loss(keys, SMALL, partial(two_outputs, PARAMS), x0, "v")
        return both, simple_loss(keys, SMALL, lambda xt, t: PARAMS["mean"] * xt, x0, "v")

    both, alone = losses(keys, x0)
    np.testing.assert_array_equal(both, alone)
    assert split_output(x0, x0)[1] is None


def test_l_vlb_at_each_t_compares_with_q_posterior():
    """With the exact x0 and fixed_small every term but the decoder's is 0; a wrong t would show."""
    x0 = gaussian_images(8)
    keys = example_keys(8)
    t = jnp.arange(8)

    @jax.jit
    def vlb_and_kl(x0_hat):
        vlb = vlb_loss(keys, SMALL, lambda xt, t: x0_hat, x0, "x0", "fixed_small", t=t)
        xt, _ = draw_xt(keys, SMALL, x0, t)
        mean, variance = q_posterior(SMALL, x0, xt, t)
        shift = q_posterior(SMALL, x0_hat, xt, t)[0] - mean
        return vlb, jnp.mean(shift**2 / (2 * jnp.maximum(variance, 1e-9)), (1, 2, 3))

    np.testing.assert_allclose(vlb_and_kl(x0)[0][1:], 0, atol=1e-5)
    vlb, kl = map(np.asarray, vlb_and_kl(x0 + 0.1))
    np.testing.assert_allclose(vlb[1:], (8 * kl / np.log(2))[1:], rtol=1e-3)
