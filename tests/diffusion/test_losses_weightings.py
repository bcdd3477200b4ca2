"""The weightings in the words of their papers; one optimum whatever the target and weighting."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import SCHEDULE, STD, TARGETS, gaussian, keys, loss_of
from jax.tree_util import Partial

from ddpm_jax.diffusion import preconditioning
from ddpm_jax.diffusion.losses import draw_xt, loss_weight, simple_loss
from ddpm_jax.diffusion.prediction import make_denoiser, regression_target
from ddpm_jax.diffusion.schedule import edm_betas as edm_betas
from ddpm_jax.diffusion.schedule import (
    flow_betas,
    from_betas,
    linear_betas,
    per_example,
    zero_terminal_snr,
)

WEIGHTINGS = ["simple", "min_snr", "soft_min_snr", "p2"]


def weights64(weighting, target, snr, gamma):
    """Each as its paper says it, of the error in eps, in x0 or in v."""
    if weighting == "min_snr":  # section 3.4, Hang et al. 2023
        of = {
            "x0": np.minimum(snr, gamma),
            "eps": np.minimum(1, gamma / snr),
            "v": np.minimum(snr, gamma) / (snr + 1),
        }
    elif (
        weighting == "soft_min_snr"
    ):  # 1 / (sigma^2 + 1 / gamma) of the error in x0, Crowson et al. 2024
        of_x0 = 1 / (1 / snr + 1 / gamma)
        of = {"x0": of_x0, "eps": of_x0 / snr, "v": of_x0 / (snr + 1)}
    else:  # Eq. 8, Choi et al. 2022, of the error in eps, with k = 1
        of_eps = 1 / (1 + snr) ** gamma
        of = {"x0": of_eps * snr, "eps": of_eps, "v": of_eps * snr / (snr + 1)}
    return of[target]


@pytest.mark.parametrize("gamma", [None, 0.5, 2.0])
@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_weights_are_those_of_the_papers(weighting, target, gamma):
    snr = np.geomspace(1e-5, 1e5, 41)
    usual = {"min_snr": 5, "soft_min_snr": 4, "p2": 1}[weighting]
    found = loss_weight(weighting, target, jnp.asarray(snr, jnp.float32), gamma)
    np.testing.assert_allclose(found, weights64(weighting, target, snr, gamma or usual), rtol=1e-5)


@pytest.mark.parametrize("sigma_data", [0.5])
def test_soft_min_snr_is_that_of_crowson_et_al_in_edms_terms(sigma_data):
    """(sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2 of the error of EDM's inner network."""
    sigma = np.geomspace(0.002, 80, 41)
    snr = jnp.asarray(sigma**-2, jnp.float32)
    found = loss_weight("soft_min_snr", "x0", snr) / preconditioning.weight(snr, sigma_data)
    np.testing.assert_allclose(
        found, (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2, rtol=1e-5
    )


@pytest.mark.parametrize("target", TARGETS)
def test_simple_is_the_targets_own_error(target):
    np.testing.assert_array_equal(
        loss_weight("simple", target, jnp.array([0.0, 1.0, 1e5])), [1.0, 1.0, 1.0]
    )


def says(output, xt, t):
    return output


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_weighting_is_the_same_loss_of_a_denoiser_whatever_its_target(weighting):
    x0 = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 4, 4, 1)), jnp.float32)
    t = jnp.arange(8) * 100 + 50
    xt, _ = draw_xt(keys(8), SCHEDULE, x0, t)
    signal, noise = per_example(SCHEDULE.signal_and_noise(t), x0)
    x0_hat = 0.3 * xt
    found = []
    for target in TARGETS:
        output = regression_target(target, x0_hat, (xt - signal * x0_hat) / noise, signal, noise)
        weight = loss_weight(weighting, target, SCHEDULE.snr(t))
        network, options = Partial(says, output), {"t": t, "weight": weight}
        found.append(np.asarray(loss_of(keys(8), SCHEDULE, network, x0, target, **options)))
    np.testing.assert_allclose(found, np.broadcast_to(found[1], (4, 8)), rtol=2e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", ["x0", "v", "flow"])
@pytest.mark.parametrize(
    "betas", [zero_terminal_snr(linear_betas()), flow_betas()], ids=["zero_terminal", "flow"]
)
def test_weights_are_finite_where_no_signal_is_left(weighting, target, betas):
    found = loss_weight(weighting, target, from_betas(betas).snr(jnp.array([0, 999])))
    assert bool(jnp.all(jnp.isfinite(found)))
    assert float(found[1]) == float(weighting == "simple")


# The optimum


def network_of(w, target, schedule):
    """F(xt, t) = w_t xt, and what it regresses on."""

    def inner(xt, t):
        return per_example(w[t], xt) * xt

    if target == "edm":
        return preconditioning.precondition(schedule, inner, STD), "x0"
    return inner, target


@partial(jax.jit, static_argnames="target")
def x0_after_newton(schedule, x0, t, weight, target):
    """x0_hat(1, t) at the optimum of w.

    The loss is a parabola in w: one Newton step reaches its minimum from anywhere.
    """
    some = keys(len(x0), 3)

    def loss(w):
        outer, regressed = network_of(w, target, schedule)
        return jnp.sum(simple_loss(some, schedule, outer, x0, regressed, t=t, weight=weight))

    start = jnp.full(6, 0.3)
    gradient, curvature = jax.jvp(jax.grad(loss), (start,), (jnp.ones(6),))  # the levels do not mix
    outer, regressed = network_of(start - gradient / curvature, target, schedule)
    denoise = make_denoiser(schedule, outer, regressed, None)
    return denoise(jnp.ones((6, 1, 1, 1)), jnp.arange(6)).x0.ravel()


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
@pytest.mark.parametrize(
    "betas", [np.linspace(0.1, 0.9, 6), flow_betas(6), edm_betas(6)], ids=["linear", "flow", "edm"]
)
def test_every_parameterisation_has_the_same_optimum_for_gaussian_data(betas, weighting):
    schedule, x0, t = from_betas(betas), gaussian(6 * 64), jnp.tile(jnp.arange(6), 64)
    signal, noise = (np.asarray(level) for level in schedule.signal_and_noise(jnp.arange(6)))
    exact = signal * STD**2 / ((signal * STD) ** 2 + noise**2)  # E[x0 | xt] / xt
    snr, found = schedule.snr(t), {}
    for target in [*TARGETS, "edm"]:
        if target == "eps" and schedule.alpha_bar[-1] == 0:
            continue
        weight = loss_weight(weighting, "x0" if target == "edm" else target, snr)
        if target == "edm":
            weight = preconditioning.weight(snr)
        found[target] = np.asarray(x0_after_newton(schedule, x0, t, weight + 1e-3, target))
    for target, slope in found.items():
        np.testing.assert_allclose(slope, found["x0"], rtol=1e-3, atol=1e-4, err_msg=target)
        np.testing.assert_allclose(slope, exact, atol=6 * STD / np.sqrt(64 * 16), err_msg=target)
