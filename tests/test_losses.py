"""The losses at their limits and optima, the weightings in the words of their papers, how t is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import edm
from ddpm_jax.grids import q_posterior
from ddpm_jax.likelihood import bound_terms
from ddpm_jax.losses import (
    hybrid_loss,
    lognormal_times,
    loss_weight,
    noised,
    simple_loss,
    uniform_times,
    vlb_loss,
)
from ddpm_jax.prediction import make_denoiser, regression_target, split_output
from ddpm_jax.samplers import sample_keys
from ddpm_jax.schedule import edm as edm_betas
from ddpm_jax.schedule import flow, from_betas, linear, per_example, zero_terminal_snr

SCHEDULE = from_betas(linear())
TARGETS = ["eps", "x0", "v", "flow"]
WEIGHTINGS = ["simple", "min_snr", "soft_min_snr", "p2"]
X0 = 0.5


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def perfect(target, xt, t):
    """The exact output for data that is X0 everywhere."""
    signal, noise = per_example(SCHEDULE.at(t), xt)
    eps = (xt - signal * X0) / noise
    v = signal * eps - noise * X0
    return {"eps": eps, "x0": jnp.full_like(xt, X0), "v": v, "flow": eps - X0}[target]


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_network_has_no_loss(target):
    loss = simple_loss(keys(64), SCHEDULE, lambda xt, t: perfect(target, xt, t), jnp.full((64, 4, 4, 1), X0), target)
    assert loss.shape == (64,)
    assert jnp.max(loss) < 1e-9


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_that_says_nothing_has_the_second_moment_of_the_target(target):
    alpha_bar = np.cumprod(1 - linear())
    v = np.mean(alpha_bar + (1 - alpha_bar) * X0**2)
    wanted = {"eps": 1.0, "x0": X0**2, "v": v, "flow": 1 + X0**2}[target]
    loss = simple_loss(keys(1024), SCHEDULE, lambda xt, t: 0 * xt, jnp.full((1024, 8, 8, 1), X0), target)
    assert abs(float(jnp.mean(loss)) - wanted) < 5 * float(jnp.std(loss)) / np.sqrt(1024) + 1e-6


def test_a_constant_error_is_squared_and_averaged_over_the_pixels():
    def network(xt, t):
        return perfect("eps", xt, t) + jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)

    loss = simple_loss(keys(8), SCHEDULE, network, jnp.full((8, 4, 4, 3), X0))
    np.testing.assert_allclose(loss, (1 + 4 + 9) / 3, rtol=1e-4)


def test_every_timestep_is_as_likely():
    def network(xt, t):
        return jnp.broadcast_to(per_example(t, xt).astype(jnp.float32), xt.shape)

    schedule = from_betas(np.full(5, 0.7))
    t_squared = simple_loss(keys(5000), schedule, network, jnp.zeros((5000, 1, 1, 1)), "x0")
    values, counts = np.unique(np.asarray(t_squared), return_counts=True)
    assert values.tolist() == [0, 1, 4, 9, 16]
    assert np.max(np.abs(counts - 1000)) < 5 * np.sqrt(5000 * 0.2 * 0.8)


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_of_an_example_does_not_depend_on_how_the_batch_is_split(target):
    x0 = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1), minval=-1)

    def loss(part):
        return simple_loss(keys(8)[part], SCHEDULE, lambda xt, t: 0.1 * xt, x0[part], target)

    whole = loss(slice(None))
    assert len(set(whole.tolist())) == 8
    np.testing.assert_array_equal(jnp.concatenate([loss(slice(4)), loss(slice(4, 8))]), whole)
    np.testing.assert_array_equal(loss(slice(None, None, -1)), whole[::-1])


def test_the_loss_has_the_gradient_of_its_formula():
    """d/dw of mean (w - x0)^2 = 2 (w - x0)."""
    x0 = jnp.full((4, 2, 2, 1), X0)
    grad = jax.grad(lambda w: jnp.mean(simple_loss(keys(4), SCHEDULE, lambda xt, t: jnp.full(xt.shape, w), x0, "x0")))
    np.testing.assert_allclose(grad(jnp.float32(0.8)), 2 * (0.8 - X0), rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_multiplies_and_given_timesteps_are_used(target):
    x0, t = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1), minval=-1), jnp.arange(8) * 140
    plain = simple_loss(keys(8), SCHEDULE, lambda xt, t: 0.1 * xt, x0, target, t=t)
    found = simple_loss(keys(8), SCHEDULE, lambda xt, t: 0.1 * xt, x0, target, t=t, weight=jnp.arange(8.0))
    np.testing.assert_allclose(found, plain * jnp.arange(8.0), rtol=1e-6)
    xt, eps = noised(keys(8), SCHEDULE, x0, t)
    wanted = regression_target(target, x0, eps, *per_example(SCHEDULE.at(t), x0))
    np.testing.assert_allclose(plain, jnp.mean((0.1 * xt - wanted) ** 2, (1, 2, 3)), rtol=1e-5)


# Weightings


def weights64(weighting, target, snr, gamma):
    """Each as its paper says it, of the error in eps, in x0 or in v."""
    if weighting == "min_snr":  # section 3.4, Hang et al. 2023
        of = {"x0": np.minimum(snr, gamma), "eps": np.minimum(1, gamma / snr), "v": np.minimum(snr, gamma) / (snr + 1)}
    elif weighting == "soft_min_snr":  # 1 / (sigma^2 + 1 / gamma) of the error in x0, Crowson et al. 2024
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
    found = loss_weight("soft_min_snr", "x0", snr) / edm.weight(snr, sigma_data)
    np.testing.assert_allclose(found, (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_simple_is_the_targets_own_error(target):
    np.testing.assert_array_equal(loss_weight("simple", target, jnp.array([0.0, 1.0, 1e5])), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:])
def test_a_weighting_is_the_same_loss_of_a_denoiser_whatever_its_target(weighting):
    x0, t = jax.random.uniform(jax.random.key(1), (8, 4, 4, 1), minval=-1), jnp.arange(8) * 100 + 50
    xt, _ = noised(keys(8), SCHEDULE, x0, t)
    signal, noise = per_example(SCHEDULE.at(t), x0)
    x0_hat = 0.3 * xt
    found = []
    for target in TARGETS:
        output = regression_target(target, x0_hat, (xt - signal * x0_hat) / noise, signal, noise)
        weight = loss_weight(weighting, target, SCHEDULE.snr(t))
        loss = simple_loss(keys(8), SCHEDULE, lambda xt, t, y=output: y, x0, target, t=t, weight=weight)
        found.append(np.asarray(loss))
    np.testing.assert_allclose(found, np.broadcast_to(found[1], (4, 8)), rtol=2e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", ["x0", "v", "flow"])
@pytest.mark.parametrize("betas", [zero_terminal_snr(linear()), flow()], ids=["zero_terminal", "flow"])
def test_weights_are_finite_where_no_signal_is_left(weighting, target, betas):
    found = loss_weight(weighting, target, from_betas(betas).snr(jnp.array([0, 999])))
    assert bool(jnp.all(jnp.isfinite(found)))
    assert float(found[1]) == float(weighting == "simple")


# The optimum

STD = 0.5


def gaussian(count):
    return STD * jax.random.normal(jax.random.key(7), (count, 4, 4, 1))


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
@pytest.mark.parametrize("betas", [np.linspace(0.1, 0.9, 6), flow(6), edm_betas(6)], ids=["linear", "flow", "edm"])
def test_every_parameterisation_has_the_same_optimum_for_gaussian_data(betas, weighting):
    """F(xt, t) = w_t xt, its loss a parabola in w: one Newton step reaches the optimum from anywhere."""
    schedule, x0, t = from_betas(betas), gaussian(6 * 64), jnp.tile(jnp.arange(6), 64)
    some = keys(len(x0), 3)
    signal, noise = schedule.at(jnp.arange(6))
    exact = signal * STD**2 / ((signal * STD) ** 2 + noise**2)  # E[x0 | xt] / xt
    xt = jnp.ones((6, 1, 1, 1))
    found = {}
    for target in [*TARGETS, "edm"]:
        if target == "eps" and schedule.alpha_bar[-1] == 0:
            continue

        def network(w, target=target):
            inner = lambda xt, t: per_example(w[t], xt) * xt  # noqa: E731
            return (inner, target) if target != "edm" else (edm.precondition(schedule, inner, STD), "x0")

        def loss(w, target=target, network=network):
            outer, regressed = network(w)
            snr = schedule.snr(t)
            weight = edm.weight(snr) if target == "edm" else loss_weight(weighting, regressed, snr)
            return jnp.sum(simple_loss(some, schedule, outer, x0, regressed, t=t, weight=weight + 1e-3))

        start = jnp.full(6, 0.3)
        curvature = jax.jvp(jax.grad(loss), (start,), (jnp.ones(6),))[1]  # the levels do not mix
        outer, regressed = network(start - jax.grad(loss)(start) / curvature)
        rows = [make_denoiser(schedule, outer, regressed, None)(xt[:1], i).x0.item() for i in jnp.arange(6)]
        found[target] = np.asarray(rows)
    for target, slope in found.items():
        np.testing.assert_allclose(slope, found["x0"], rtol=1e-3, atol=1e-4, err_msg=target)
        np.testing.assert_allclose(slope, exact, atol=6 * STD / np.sqrt(64 * 16), err_msg=target)


# The bound

SMALL = from_betas(np.linspace(0.05, 0.8, 8))


def two_outputs(params, xt, t):
    return jnp.concatenate([params["mean"] * xt, params["said"] + 0.1 * jnp.tanh(xt)], -1)


PARAMS = {"mean": jnp.float32(0.4), "said": jnp.float32(-0.3)}


def mean_of(loss, *rest, **options):
    x0 = gaussian(16)
    return jax.jit(
        lambda params: jnp.mean(
            loss(keys(16), SMALL, lambda xt, t: two_outputs(params, xt, t), x0, "v", *rest, **options)
        )
    )


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_l_hybrid_teaches_the_mean_by_l_simple_and_the_variance_by_a_thousandth_of_l_vlb(variance):
    weight = jnp.linspace(0.5, 2.0, 16)
    hybrid, by_hybrid = jax.value_and_grad(mean_of(hybrid_loss, variance, weight=weight))(PARAMS)
    simple, by_simple = jax.value_and_grad(mean_of(simple_loss, weight=weight))(PARAMS)
    vlb, by_vlb = jax.value_and_grad(mean_of(vlb_loss, variance))(PARAMS)
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
    terms = bound_terms(sample_keys(0, jnp.arange(len(x0))), SMALL, denoise, x0, jnp.arange(8), "learned_range")
    error = np.sqrt(np.var(found, 0) / 32 + 64 * np.var(terms, 0) / len(x0))
    assert np.all(np.abs(np.mean(found, 0) - 8 * np.mean(terms, 0)) < 5 * error)
    uniform = vlb(keys(2000, 5), gaussian(2000))
    assert abs(np.mean(uniform) - np.sum(np.mean(terms, 0))) < 5 * np.std(uniform) / np.sqrt(2000) + 0.02


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_learned_variance_comes_to_that_of_the_true_reverse_step(variance):
    """Of Gaussian data and the exact mean: q(x_{t-1} | x_t), whose variance is known."""
    t, x0 = jnp.tile(jnp.arange(1, 8), 48), gaussian(7 * 48)
    signal, noise = SMALL.at(jnp.arange(8))
    slope = signal * STD**2 / ((signal * STD) ** 2 + noise**2)

    def network(said, xt, t):
        return jnp.concatenate(
            [per_example(slope[t], xt) * xt, jnp.broadcast_to(per_example(said[t], xt), xt.shape)], -1
        )

    def loss(said):
        return jnp.mean(hybrid_loss(keys(len(x0)), SMALL, lambda xt, t: network(said, xt, t), x0, "x0", variance, t=t))

    tx = optax.adam(0.05)

    def step(state, _):
        said, opt_state = state
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(jax.grad(loss)(said), opt_state)
        return (said + updates, opt_state), None

    said, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, 300)[0])((jnp.zeros(8), tx.init(jnp.zeros(8))))
    alpha_bar = np.cumprod(1 - np.linspace(0.05, 0.8, 8))
    beta, before, after = np.linspace(0.05, 0.8, 8)[1:], alpha_bar[:-1], alpha_bar[1:]
    small = (1 - before) / (1 - after) * beta
    unknown = STD**2 * (1 - after) / (after * STD**2 + 1 - after)
    true = np.log(small + before * (beta / (1 - after)) ** 2 * unknown)
    wanted = true if variance == "learned" else 2 * (true - np.log(small)) / np.log(beta / small) - 1
    scale = 1 if variance == "learned" else 2 / np.log(beta / small)
    np.testing.assert_array_less(np.abs(said[1:] - wanted), scale * 5 * np.sqrt(2 / (48 * 16)) + 0.01)


def test_what_is_said_of_the_variance_does_not_change_l_simple():
    x0 = gaussian(8)
    both = simple_loss(keys(8), SMALL, lambda xt, t: two_outputs(PARAMS, xt, t), x0, "v")
    alone = simple_loss(keys(8), SMALL, lambda xt, t: PARAMS["mean"] * xt, x0, "v")
    np.testing.assert_array_equal(both, alone)
    assert split_output(x0, x0)[1] is None


# How t is drawn


def test_lognormal_times_are_normal_in_log_sigma():
    schedule = from_betas(edm_betas())
    t = lognormal_times(keys(4000), schedule)
    log_sigma = -0.5 * np.log(np.asarray(schedule.snr(t), float))
    assert abs(np.mean(log_sigma) + 1.2) < 5 * 1.2 / np.sqrt(4000)
    assert abs(np.std(log_sigma) / 1.2 - 1) < 5 / np.sqrt(2 * 4000)
    assert t.dtype == jnp.float32


def test_lognormal_times_stay_within_the_schedule():
    t = lognormal_times(keys(500), SCHEDULE, 0.0, 50.0)
    assert (float(t.min()), float(t.max())) == (0, 999)
    t = lognormal_times(keys(500), from_betas(zero_terminal_snr(linear())), 0.0, 50.0)
    assert bool(jnp.all((t >= 0) & (t <= 999)))


@pytest.mark.parametrize("draw", [uniform_times, lognormal_times])
def test_t_and_noise_are_of_keys_of_their_own(draw):
    t = draw(keys(2000), SCHEDULE).astype(jnp.float32)
    eps = noised(keys(2000), SCHEDULE, jnp.zeros((2000, 1, 1, 1)), jnp.zeros(2000, jnp.int32))[1].ravel()
    assert abs(np.corrcoef(t, eps)[0, 1]) < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(draw(keys(2000)[5:9], SCHEDULE), t[5:9].astype(draw(keys(1), SCHEDULE).dtype))


def test_the_reverse_step_at_each_t_is_q_posterior():
    """An exact x0 and fixed_small: no divergence but at t = 0, so that a wrong stride or t would show."""
    x0 = gaussian(8)
    xt, _ = noised(keys(8), SMALL, x0, jnp.arange(8))
    vlb = jax.jit(
        lambda x0_hat: vlb_loss(keys(8), SMALL, lambda xt, t: x0_hat, x0, "x0", "fixed_small", t=jnp.arange(8))
    )
    found = vlb(x0)
    np.testing.assert_allclose(found[1:], 0, atol=1e-5)
    off = vlb(x0 + 0.1)
    mean, variance = q_posterior(SMALL, x0, xt, jnp.arange(8))
    shift = q_posterior(SMALL, x0 + 0.1, xt, jnp.arange(8))[0] - mean
    wanted = 8 * jnp.mean(shift**2 / (2 * jnp.maximum(variance, 1e-9)), (1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(off[1:], wanted[1:], rtol=1e-3)
