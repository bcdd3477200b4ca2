"""The weightings match their papers; every target and weighting has the same optimum."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.losses import (
    STD,
    TARGETS,
    example_keys,
    gaussian_images,
    jitted_simple_loss,
)
from helpers.samplers import SCHEDULE
from jax.tree_util import Partial

from ddpm_jax.diffusion import preconditioning
from ddpm_jax.diffusion.losses import draw_xt, loss_weight, simple_loss
from ddpm_jax.diffusion.prediction import make_denoiser, regression_target
from ddpm_jax.diffusion.schedule import (
    edm_betas,
    flow_betas,
    from_betas,
    linear_betas,
    per_example,
    zero_terminal_snr,
)

WEIGHTINGS = ["simple", "min_snr", "soft_min_snr", "p2"]


def paper_weights(weighting, target, snr, gamma):
    """The weights of the error in eps, x0 and v as the papers give them, in float64."""
    if weighting == "min_snr":
        # Section 3.4, Hang et al. 2023
        weights = {
            "x0": np.minimum(snr, gamma),
            "eps": np.minimum(1, gamma / snr),
            "v": np.minimum(snr, gamma) / (snr + 1),
        }
    elif weighting == "soft_min_snr":
        # 1 / (sigma^2 + 1 / gamma) for the error in x0, Crowson et al. 2024
        x0_weight = 1 / (1 / snr + 1 / gamma)
        weights = {"x0": x0_weight, "eps": x0_weight / snr, "v": x0_weight / (snr + 1)}
    else:
        # Eq. 8, Choi et al. 2022, for the error in eps, with k = 1
        eps_weight = 1 / (1 + snr) ** gamma
        weights = {"x0": eps_weight * snr, "eps": eps_weight, "v": eps_weight * snr / (snr + 1)}
    return weights[target]


@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_weights_match_the_papers(weighting, target, gamma):
    snr = np.geomspace(1e-5, 1e5, 41)
    default_gamma = {"min_snr": 5, "soft_min_snr": 4, "p2": 1}[weighting]
    weight = loss_weight(weighting, target, jnp.asarray(snr, jnp.float32), gamma)
    expected = paper_weights(weighting, target, snr, gamma or default_gamma)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.mark.parametrize("sigma_data", [0.5])
def test_soft_min_snr_matches_crowson_et_al_for_edms_inner_network(sigma_data):
    """The weight of its error is (sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2."""
    sigma = np.geomspace(0.002, 80, 41)
    snr = jnp.asarray(sigma**-2, jnp.float32)
    weight = loss_weight("soft_min_snr", "x0", snr) / preconditioning.weight(snr, sigma_data)
    expected = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_the_weighting_simple_is_1(target):
    weight = loss_weight("simple", target, jnp.array([0.0, 1.0, 1e5]))
    np.testing.assert_array_equal(weight, [1.0, 1.0, 1.0])


def test_an_unknown_weighting_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="Unknown weighting 'min-snr': choose one of simple, min_"):
        loss_weight("min-snr", "x0", jnp.ones(3))
    for target, message in (("noise", "Unknown target 'noise'"), ("edm", "use Objective.network")):
        with pytest.raises(ValueError, match=message):
            loss_weight("simple", target, jnp.ones(3))


def constant_output(output, xt, t):
    return output


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_weighting_gives_a_denoiser_the_same_loss_for_every_target(weighting):
    x0 = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 4, 4, 1)), jnp.float32)
    t = jnp.arange(8) * 100 + 50
    keys = example_keys(8)
    xt, _ = draw_xt(keys, SCHEDULE, x0, t)
    signal, noise = per_example(SCHEDULE.signal_and_noise(t), x0)
    x0_hat = 0.3 * xt
    eps_hat = (xt - signal * x0_hat) / noise
    losses = []
    for target in TARGETS:
        network = Partial(
            constant_output, regression_target(target, x0_hat, eps_hat, signal, noise)
        )
        weight = loss_weight(weighting, target, SCHEDULE.snr(t))
        loss = jitted_simple_loss(keys, SCHEDULE, network, x0, target, t=t, weight=weight)
        losses.append(np.asarray(loss))
    np.testing.assert_allclose(losses, np.broadcast_to(losses[1], (4, 8)), rtol=2e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", ["x0", "v", "flow"])
@pytest.mark.parametrize(
    "betas", [zero_terminal_snr(linear_betas()), flow_betas()], ids=["zero_terminal", "flow"]
)
def test_weights_are_finite_at_zero_snr(weighting, target, betas):
    weight = loss_weight(weighting, target, from_betas(betas).snr(jnp.array([0, 999])))
    assert bool(jnp.all(jnp.isfinite(weight)))
    assert float(weight[1]) == float(weighting == "simple")


# The optimum


def network_and_target(w, target, schedule):
    """The linear network F(xt, t) = w_t xt, preconditioned for edm, and its regression target."""

    def inner(xt, t):
        return per_example(w[t], xt) * xt

    if target == "edm":
        return preconditioning.precondition(schedule, inner, STD), "x0"
    return inner, target


@partial(jax.jit, static_argnames="target")
def x0_after_newton(schedule, x0, t, weight, target):
    """x0_hat(1, t) at the optimum of w.

    The loss is a parabola in w, so one Newton step from any start reaches its minimum.
    """
    keys = example_keys(len(x0), 3)

    def loss(w):
        network, output = network_and_target(w, target, schedule)
        return jnp.sum(simple_loss(keys, schedule, network, x0, output, t=t, weight=weight))

    start = jnp.full(6, 0.3)
    # The Hessian is diagonal, as each w_t appears at its own t only.
    gradient, curvature = jax.jvp(jax.grad(loss), (start,), (jnp.ones(6),))
    network, output = network_and_target(start - gradient / curvature, target, schedule)
    denoise = make_denoiser(schedule, network, output, None)
    return denoise(jnp.ones((6, 1, 1, 1)), jnp.arange(6)).x0.ravel()


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
@pytest.mark.parametrize(
    "betas", [np.linspace(0.1, 0.9, 6), flow_betas(6), edm_betas(6)], ids=["linear", "flow", "edm"]
)
def test_every_target_has_the_same_optimum_for_gaussian_images(betas, weighting):
    schedule = from_betas(betas)
    x0 = gaussian_images(6 * 64)
    t = jnp.tile(jnp.arange(6), 64)
    signal, noise = (np.asarray(level) for level in schedule.signal_and_noise(jnp.arange(6)))
    # E[x0 | xt] / xt
    exact = signal * STD**2 / ((signal * STD) ** 2 + noise**2)
    snr = schedule.snr(t)
    slopes = {}
    for target in [*TARGETS, "edm"]:
        if target == "eps" and schedule.alpha_bar[-1] == 0:
            continue
        if target == "edm":
            weight = preconditioning.weight(snr)
        else:
            weight = loss_weight(weighting, target, snr)
        slopes[target] = np.asarray(x0_after_newton(schedule, x0, t, weight + 1e-3, target))
    for target, slope in slopes.items():
        np.testing.assert_allclose(slope, slopes["x0"], rtol=1e-3, atol=1e-4, err_msg=target)
        np.testing.assert_allclose(slope, exact, atol=6 * STD / np.sqrt(64 * 16), err_msg=target)
