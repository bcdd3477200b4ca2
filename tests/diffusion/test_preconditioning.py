"""EDM's preconditioning against Table 1 of Karras et al. 2022, written in their variables in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion import preconditioning
from ddpm_jax.diffusion.losses import simple_loss
from ddpm_jax.diffusion.preconditioning import precondition
from ddpm_jax.diffusion.schedule import edm_betas as edm_betas
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.samplers import sample_keys

SCHEDULE = from_betas(edm_betas())
T = np.array([0.0, 123.25, 500.0, 998.5, 999.0])
SIGMA = np.exp(np.log(0.002) + T / 999 * np.log(80 / 0.002)).reshape(-1, 1, 1, 1)


def images(seed, count=5):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, 4, 4, 3)), jnp.float32)


@pytest.mark.parametrize("sigma_data", [0.5, 0.2])
def test_the_preconditioned_network_is_eq_7(sigma_data):
    seen, xt = [], images(0)

    def network(x, t):
        seen.append((x, t))
        return jnp.tanh(x) + 0.1

    found = precondition(SCHEDULE, network, sigma_data)(xt, jnp.asarray(T, jnp.float32))
    x, total = np.asarray(xt, float) * np.sqrt(1 + SIGMA**2), SIGMA**2 + sigma_data**2
    c_skip, c_out, c_in = (
        sigma_data**2 / total,
        SIGMA * sigma_data / np.sqrt(total),
        1 / np.sqrt(total),
    )
    np.testing.assert_allclose(seen[0][0], c_in * x, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(seen[0][1], T)
    np.testing.assert_allclose(
        found, c_skip * x + c_out * (np.tanh(c_in * x) + 0.1), rtol=1e-4, atol=1e-6
    )


def test_the_weight_is_lambda():
    found = preconditioning.weight(SCHEDULE.snr(jnp.asarray(T, jnp.float32)))
    np.testing.assert_allclose(found, ((SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2).ravel(), rtol=1e-4)


HALF = jnp.asarray(0.5 * np.random.default_rng(1).standard_normal((64, 16, 16, 1)), jnp.float32)


@jax.jit
def loss_of_nothing(x0, t):
    """The loss of a network that says 0, and what it is given."""
    seen = []

    def nothing(x, t):
        seen.append(x)
        return 0 * x

    network, weight = precondition(SCHEDULE, nothing), preconditioning.weight(SCHEDULE.snr(t))
    keys = sample_keys(0, jnp.arange(64))
    return simple_loss(keys, SCHEDULE, network, x0, "x0", t=t, weight=weight), seen[0]


@pytest.mark.parametrize("t", [0, 400, 999])
def test_input_and_target_of_the_inner_network_have_unit_variance(t):
    """Of data with sigma_data = 0.5; the loss of a net that says 0 is then 1 at every noise level."""
    loss, seen = loss_of_nothing(HALF, jnp.full(64, t))
    tolerance = 5 * np.sqrt(2 / HALF.size)
    assert abs(np.mean(loss) - 1) < tolerance
    assert abs(np.mean(np.square(seen)) - 1) < tolerance


def test_all_is_finite_where_no_signal_is_left():
    schedule, t = from_betas(zero_terminal_snr(linear_betas())), jnp.full(5, 999)
    found = precondition(schedule, lambda x, t: x)(images(0), t)
    np.testing.assert_allclose(found, 0.5 * images(0), rtol=1e-6)
    np.testing.assert_allclose(preconditioning.weight(schedule.snr(t)), 4, rtol=1e-6)


def test_what_is_said_of_the_variance_is_passed_on():
    t, said = jnp.asarray(T, jnp.float32), images(3)
    both = precondition(SCHEDULE, lambda x, t: jnp.concatenate([x, said], -1))(images(0), t)
    np.testing.assert_array_equal(both[..., 3:], said)
    np.testing.assert_array_equal(
        both[..., :3], precondition(SCHEDULE, lambda x, t: x)(images(0), t)
    )


def scaled(w, x, t):
    return w * x


def test_parameters_pass_through_jit_as_arguments():
    run = jax.jit(lambda network, xt, t: network(xt, t))
    for w in (0.1, 0.2):
        run(
            precondition(SCHEDULE, Partial(scaled, jnp.float32(w))),
            images(0),
            jnp.asarray(T, jnp.float32),
        )
    assert run._cache_size() == 1
