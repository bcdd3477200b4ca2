"""EDM's preconditioning matches Table 1 of Karras et al. 2022 in their variables, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion import preconditioning
from ddpm_jax.diffusion.losses import simple_loss
from ddpm_jax.diffusion.preconditioning import precondition
from ddpm_jax.diffusion.schedule import edm_betas, from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.samplers import sample_keys

SCHEDULE = from_betas(edm_betas())
T = np.array([0.0, 123.25, 500.0, 998.5, 999.0])
SIGMA = np.exp(np.log(0.002) + T / 999 * np.log(80 / 0.002)).reshape(-1, 1, 1, 1)


def images(seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((5, 4, 4, 3)), jnp.float32)


@pytest.mark.parametrize("sigma_data", [0.5, 0.2])
def test_the_preconditioned_network_matches_eq_7(sigma_data):
    inputs = []
    xt = images(0)

    def network(x, t):
        inputs.append((x, t))
        return jnp.tanh(x) + 0.1

    x0 = precondition(SCHEDULE, network, sigma_data)(xt, jnp.asarray(T, jnp.float32))
    x = np.asarray(xt, float) * np.sqrt(1 + SIGMA**2)
    total = SIGMA**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = SIGMA * sigma_data / np.sqrt(total)
    c_in = 1 / np.sqrt(total)
    np.testing.assert_allclose(inputs[0][0], c_in * x, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(inputs[0][1], T)
    expected = c_skip * x + c_out * (np.tanh(c_in * x) + 0.1)
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-6)


def test_the_weight_is_lambda():
    weight = preconditioning.weight(SCHEDULE.snr(jnp.asarray(T, jnp.float32)))
    expected = ((SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2).ravel()
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


X0_STD_HALF = jnp.asarray(
    0.5 * np.random.default_rng(1).standard_normal((64, 16, 16, 1)), jnp.float32
)


@jax.jit
def loss_and_input_of_zero_network(x0, t):
    inputs = []

    def network(x, t):
        inputs.append(x)
        return 0 * x

    weight = preconditioning.weight(SCHEDULE.snr(t))
    keys = sample_keys(0, jnp.arange(64))
    loss = simple_loss(
        keys, SCHEDULE, precondition(SCHEDULE, network), x0, "x0", t=t, weight=weight
    )
    return loss, inputs[0]


@pytest.mark.parametrize("t", [0, 400, 999])
def test_input_and_target_of_the_inner_network_have_unit_variance(t):
    """The data have sigma_data = 0.5, so the loss of a network that outputs 0 is 1 at every t."""
    loss, network_input = loss_and_input_of_zero_network(X0_STD_HALF, jnp.full(64, t))
    tolerance = 5 * np.sqrt(2 / X0_STD_HALF.size)
    assert abs(np.mean(loss) - 1) < tolerance
    assert abs(np.mean(np.square(network_input)) - 1) < tolerance


def test_output_and_weight_are_finite_at_zero_snr():
    schedule = from_betas(zero_terminal_snr(linear_betas()))
    t = jnp.full(5, 999)
    x0 = precondition(schedule, lambda x, t: x)(images(0), t)
    np.testing.assert_allclose(x0, 0.5 * images(0), rtol=1e-6)
    np.testing.assert_allclose(preconditioning.weight(schedule.snr(t)), 4, rtol=1e-6)


def test_the_output_for_the_variance_passes_through():
    t = jnp.asarray(T, jnp.float32)
    log_var = images(3)
    both = precondition(SCHEDULE, lambda x, t: jnp.concatenate([x, log_var], -1))(images(0), t)
    alone = precondition(SCHEDULE, lambda x, t: x)(images(0), t)
    np.testing.assert_array_equal(both[..., 3:], log_var)
    np.testing.assert_array_equal(both[..., :3], alone)


def scaled_input(w, x, t):
    return w * x


def test_parameters_pass_through_jit_as_arguments():
    run = jax.jit(lambda network, xt, t: network(xt, t))
    t = jnp.asarray(T, jnp.float32)
    for w in (0.1, 0.2):
        run(precondition(SCHEDULE, Partial(scaled_input, jnp.float32(w))), images(0), t)
    assert run._cache_size() == 1
