"""Statistics against closed forms for Gaussians and their least-squares definition on a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import gaussian_x0, mixture_x0
from ddpm_jax.diffusion.grid import grid_from_pairs
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr
from ddpm_jax.evaluation.solver_statistics import (
    estimate,
    fit,
    levels,
    statistics_batch,
    with_integrals,
)
from ddpm_jax.samplers import initial_noise, sample, sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import load, with_statistics
from ddpm_jax.statistics import save

SCHEDULE = from_betas(linear_betas())
SHAPE = (2, 2, 1)
MEANS = jnp.array([[-0.7, 0.5, 0.1, 0.4], [0.3, -0.5, 0.8, -0.2], [0.9, 0.2, -0.6, -0.9]])
MEANS = MEANS.reshape(3, *SHAPE)
jitted_sample = jax.jit(sample)


def make_batches(network, images, num_batches=1):
    denoise = make_denoiser(SCHEDULE, network, "x0", None)
    rows = np.split(np.arange(len(images)), num_batches)
    images = np.asarray(images, np.float32)
    return [
        statistics_batch(sample_keys(3, jnp.asarray(i, jnp.int32)), denoise, jnp.asarray(images[i]))
        for i in rows
    ]


def x0_statistics(statistics):
    """The statistics l = 1, s = b = 0 of DPM-Solver++, in tables of the same size."""
    ones = np.ones_like(statistics.l)
    zeros = np.zeros_like(statistics.l)
    return with_integrals(statistics.lambdas, ones, zeros, zeros, zeros[0])


@pytest.fixture(scope="module")
def mixture():
    """A batch of images of three Gaussians, and the statistics of their exact denoiser."""
    rng = np.random.default_rng(0)
    images = np.asarray(MEANS)[rng.integers(0, 3, 4000)] + 0.3 * rng.normal(size=(4000, *SHAPE))
    batches = make_batches(mixture_x0(SCHEDULE, MEANS, 0.3), images)
    return batches[0], estimate(SCHEDULE, batches, 64)


def test_a_gaussian_of_independent_numbers_has_the_closed_form():
    """l = (1 - ab) / (ab std^2 + 1 - ab), and f = -mean l for every x, so s = 0, b = -mean l'."""
    mean = np.array([0.3, -0.2, 0.0, 0.5]).reshape(SHAPE)
    std = np.array([0.5, 0.2, 1.0, 0.7]).reshape(SHAPE)
    covariance = jnp.asarray(np.diag(std.reshape(-1) ** 2), jnp.float32)
    network = gaussian_x0(SCHEDULE, jnp.asarray(mean, jnp.float32), covariance)
    images = np.random.default_rng(0).normal(size=(8, *SHAPE))
    statistics = estimate(SCHEDULE, make_batches(network, images), 200)
    lambdas = statistics.lambdas.astype(float).reshape(-1, 1, 1, 1)
    l = 1 / (1 + std**2 * np.exp(2 * lambdas))
    np.testing.assert_allclose(statistics.l, l, atol=2e-5)
    np.testing.assert_array_equal(statistics.s, 0)
    # b is less exact because l' is estimated by a difference.
    np.testing.assert_allclose(statistics.b, mean * 2 * (l - l**2), atol=0.01)
    np.testing.assert_allclose(statistics.p, -mean * l, atol=1e-3)
    L = -np.log(std**2 + np.exp(-2 * lambdas)) / 2
    np.testing.assert_allclose(statistics.L, L - L[0], atol=1e-3)

    t = np.asarray(SCHEDULE.timestep_at(jnp.linspace(-6.0, 6.0, 6)))
    grid = grid_from_pairs(SCHEDULE, t[:-1], t[1:])
    keys = sample_keys(0, jnp.arange(8))
    xT = initial_noise(keys, SHAPE)
    denoise = make_denoiser(SCHEDULE, network, "x0", None)
    a = float(grid.sqrt_alpha_bar[0])
    b = float(grid.sqrt_one_minus_alpha_bar[0])
    a_next = float(grid.sqrt_alpha_bar_next[-1])
    b_next = float(grid.sqrt_one_minus_alpha_bar_next[-1])
    growth = np.sqrt((a_next * std) ** 2 + b_next**2) / np.sqrt((a * std) ** 2 + b**2)
    expected = a_next * mean + (np.asarray(xT) - a * mean) * growth

    def error(statistics):
        sampler = with_statistics(statistics, 3, True)
        return np.max(np.abs(jitted_sample(keys, denoise, sampler, grid, xT) - expected))

    own = error(statistics)
    assert own < 1e-3
    assert error(x0_statistics(statistics)) > 20 * own


def test_a_gaussian_of_dependent_numbers_has_the_closed_form():
    """f is linear in x, so s and b follow from covariances. x has covariance ab C + (1 - ab) I."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4)) / 2
    mean = rng.normal(size=4) / 2
    cov = root @ root.T
    images = (mean + rng.normal(size=(20000, 4)) @ root.T).reshape(-1, *SHAPE)
    mean_image = jnp.asarray(mean.reshape(SHAPE), jnp.float32)
    network = gaussian_x0(SCHEDULE, mean_image, jnp.asarray(cov, jnp.float32))
    batches = make_batches(network, images)
    statistics = estimate(SCHEDULE, batches, 60)

    def exact_l(lam):
        ab = 1 / (1 + np.exp(-2 * lam))
        return np.diag(np.eye(4) - ab * cov @ np.linalg.inv(ab * cov + (1 - ab) * np.eye(4)))

    def linear_f(lam):
        """A and c of f = A (y - mean) + c, with y = x / sqrt(ab)."""
        dx0_dy = cov @ np.linalg.inv(cov + np.exp(-2 * lam) * np.eye(4))
        return np.diag(1 - exact_l(lam)) - dx0_dy, -exact_l(lam) * mean

    d = 1e-4
    for i in (15, 30, 45):
        lam = float(statistics.lambdas[i])
        A, c = linear_f(lam)
        A_after, c_after = linear_f(lam + d)
        A_before, c_before = linear_f(lam - d)
        y_cov = cov + np.exp(-2 * lam) * np.eye(4)
        # f' = A_slope (y - mean) + c', by y' = x0 - y.
        A_slope = (A_after - A_before) / (2 * d) - A @ (np.exp(-2 * lam) * np.linalg.inv(y_cov))
        s = np.diag(A @ y_cov @ A_slope.T) / np.diag(A @ y_cov @ A.T)
        b = (c_after - c_before) / (2 * d) - s * c
        np.testing.assert_allclose(statistics.l[i].reshape(-1), exact_l(lam), atol=0.01)
        np.testing.assert_allclose(statistics.s[i].reshape(-1), s, atol=0.1)
        np.testing.assert_allclose(statistics.b[i].reshape(-1), b, atol=0.05)


@jax.jit
def f_along_the_ode(denoise, images, noise, t, lam, offset, l):
    """f at lambda + offset along the ODE from xt at t, by a midpoint step in y = x / alpha.

    `l` is the statistic at lambda + offset.
    """

    def x0(y, lam):
        return denoise(y * jnp.sqrt(jax.nn.sigmoid(2 * lam)), SCHEDULE.timestep_at(2 * lam)).x0

    alpha, std = SCHEDULE.signal_and_noise(t)
    y = (alpha * images + std * noise) / alpha
    middle = y + offset / 2 * (x0(y, lam) - y)
    y = y + offset * (x0(middle, lam + offset / 2) - middle)
    return (1 - l)[None] * y - x0(y, lam + offset)


def test_s_and_b_are_the_least_squares_fit_of_a_mixture(mixture):
    """f' is a difference along the ODE here, independent of any Jacobian."""
    (denoise, images, noise, _), statistics = mixture
    pixels = [(0, 0), (0, 1), (1, 0), (1, 1)]
    d = 0.02
    for i in (20, 32, 44):
        t = levels(SCHEDULE, 64)[i]
        lam = statistics.lambdas[i]

        def f_at(offset, t=t, lam=lam):
            at = float(lam) + offset
            l = [np.interp(at, statistics.lambdas, statistics.l[:, r, c, 0]) for r, c in pixels]
            numbers = (np.float32(value) for value in (t, lam, offset, np.reshape(l, SHAPE)))
            return np.asarray(f_along_the_ode(denoise, images, noise, *numbers), float)

        f = f_at(0.0)
        f_slope = (f_at(d) - f_at(-d)) / (2 * d)
        lines = [np.polyfit(f[:, r, c, 0], f_slope[:, r, c, 0], 1) for r, c in pixels]
        s, b = zip(*lines, strict=True)
        np.testing.assert_allclose(statistics.s[i].reshape(-1), s, atol=0.05)
        np.testing.assert_allclose(statistics.b[i].reshape(-1), b, atol=0.02)


@jax.jit
def mean_and_deviation_of_f(denoise, images, noise, t, l):
    """The mean and deviation of f = (1 - l) xt / alpha - x0 over the images, at one level."""
    alpha, std = SCHEDULE.signal_and_noise(t)
    xt = alpha * images + std * noise
    f = (1 - l)[None] * xt / alpha - denoise(xt, t).x0
    return jnp.mean(f, 0), jnp.std(f, 0)


def test_with_an_exact_denoiser_p_is_the_mean_of_f_and_S_its_log_deviation(mixture):
    """Along the ODE, the mean of f changes by E f' and its variance by 2 cov(f, f')."""
    (denoise, images, noise, _), statistics = mixture
    moments = [
        mean_and_deviation_of_f(denoise, images, noise, np.float32(t), l)
        for t, l in zip(levels(SCHEDULE, 64), statistics.l, strict=True)
    ]
    mean, std = (np.stack(values) for values in zip(*moments, strict=True))
    np.testing.assert_allclose(statistics.p, mean, atol=0.03)
    change = np.log(std / std[16])
    S = statistics.S - statistics.S[16]
    np.testing.assert_allclose(S[16:48], change[16:48], atol=0.15)


def exact_end(x, start, stop, num_steps=400):
    """x at lambda = `stop` from x at `start` along y' = x0 - y, by Runge-Kutta steps in float64."""
    means = np.asarray(MEANS, float)[None]

    def x0(y, lam):
        variance = 0.3**2 + np.exp(-2 * lam)  # of y = xt / alpha about each mean
        offset = y[:, None] - means  # (b, 3, h, w, c)
        weight = np.exp(-np.sum(offset**2, (2, 3, 4), keepdims=True) / (2 * variance))
        weight /= weight.sum(1, keepdims=True)
        return np.sum(weight * (means + 0.3**2 / variance * offset), 1)

    def slope(y, lam):
        return x0(y, lam) - y

    def alpha(lam):
        return 1 / np.sqrt(1 + np.exp(-2 * lam))

    y = np.asarray(x, float) / alpha(start)
    h = (stop - start) / num_steps
    for lam in start + h * np.arange(num_steps):
        a = slope(y, lam)
        b = slope(y + h / 2 * a, lam + h / 2)
        c = slope(y + h / 2 * b, lam + h / 2)
        d = slope(y + h * c, lam + h)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return alpha(stop) * y


def test_statistics_reduce_the_error_on_a_mixture(mixture):
    (denoise, *_), statistics = mixture
    keys = sample_keys(9, jnp.arange(256))
    xT = initial_noise(keys, SHAPE)
    t = np.asarray(SCHEDULE.timestep_at(jnp.linspace(SCHEDULE.log_snr[-1], 6.0, 6)))
    grid = grid_from_pairs(SCHEDULE, t[:-1], t[1:])
    expected = exact_end(xT, float(SCHEDULE.log_snr[-1]) / 2, 3.0)

    def error(statistics):
        sampler = with_statistics(statistics, 3, True)
        samples = np.asarray(jitted_sample(keys, denoise, sampler, grid, xT))
        return np.sqrt(np.mean((samples - expected) ** 2))

    assert error(statistics) < 0.75 * error(x0_statistics(statistics))


def saturated(xt, t):
    """A network whose output is not linear in xt."""
    return jnp.tanh(2 * xt)


def test_statistics_do_not_depend_on_the_batches(mixture):
    """Each image has the noise and the signs of its own key, whatever the batch."""
    images = np.asarray(mixture[0].images)[:40]
    whole, halves = (make_batches(Partial(saturated), images, n) for n in (1, 2))
    for array, *parts in zip(whole[0][1:], *(half[1:] for half in halves), strict=True):
        np.testing.assert_array_equal(array, np.concatenate(parts))
    assert set(np.unique(whole[0].signs)) == {-1, 1}
    calls = []
    one, two = (estimate(SCHEDULE, each, 8, lambda: calls.append(1)) for each in (whole, halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, two)
    assert len(calls) == 2 * len(one.lambdas) == 16


@pytest.mark.parametrize(
    "betas", [linear_betas(), zero_terminal_snr(linear_betas()), linear_betas(20, 1e-3, 0.6)]
)
def test_levels_are_between_timesteps_with_signal(betas):
    schedule = from_betas(betas)
    t = levels(schedule, 32)
    assert np.all(t % 1 == 0.5)
    assert np.all(np.diff(t) < 0)
    assert t[-1] == 0.5
    assert len(betas) - 3 <= t[0] < len(betas) - 1
    assert np.all(np.isfinite(schedule.log_snr[np.ceil(t).astype(int)]))
    assert len(t) > 10


def test_a_schedule_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="more than three timesteps"):
        levels(from_betas(linear_betas(3, 0.9, 0.95)), 8)


def test_integrals_are_exact_to_fourth_order():
    errors = []
    for n in (20, 40):
        x = np.linspace(0, 2, n).reshape(-1, 1, 1, 1)
        statistics = with_integrals(x.reshape(-1), np.cos(x), 0.5 + 0 * x, np.sin(x), 0 * x[0])
        p = (np.exp(x / 2) - np.cos(x) - np.sin(x) / 2) / 1.25
        pairs = (statistics.L, np.sin(x)), (statistics.S, x / 2), (statistics.p, p)
        errors.append([np.max(np.abs(table - exact)) for table, exact in pairs])
    coarse, fine = np.array(errors)
    assert np.all(fine < 2e-5), errors
    assert np.all(fine[[0, 2]] < coarse[[0, 2]] / 5)


def test_s_is_zero_where_f_does_not_vary():
    one = np.ones((5, *SHAPE))
    means = one, one, 2 * one
    covariances = 1e-13 * one, 0 * one, 1e-13 * one, one
    statistics = fit(np.linspace(0, 1, 5), 0.5 * one, *means, *covariances)
    np.testing.assert_array_equal(statistics.s, 0)
    np.testing.assert_array_equal(statistics.b, 2)


def test_a_file_restores_the_statistics(mixture, tmp_path):
    _, statistics = mixture
    path = tmp_path / "new" / "statistics.npz"
    save(statistics, path)
    jax.tree.map(np.testing.assert_array_equal, load(path), statistics)
    samplers.make("dpm_solver_v3", statistics=str(path))
