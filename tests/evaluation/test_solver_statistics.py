"""Statistics against closed forms of Gaussians and their least-squares definition on a mixture."""

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
    integrated,
    levels,
    statistics_batch,
)
from ddpm_jax.samplers import initial_noise, sample, sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import load, with_statistics
from ddpm_jax.statistics import save

SCHEDULE = from_betas(linear_betas())
SHAPE = (2, 2, 1)
MEANS = jnp.array([[-0.7, 0.5, 0.1, 0.4], [0.3, -0.5, 0.8, -0.2], [0.9, 0.2, -0.6, -0.9]]).reshape(
    3, *SHAPE
)


def parts_of(network, images, pieces=1):
    denoise = make_denoiser(SCHEDULE, network, "x0", None)
    keys = jnp.split(sample_keys(3, jnp.arange(len(images))), pieces)
    return [
        statistics_batch(k, denoise, x)
        for k, x in zip(keys, jnp.split(images, pieces), strict=True)
    ]


def of_x0(found):
    """The statistics l = 1, s = b = 0 of DPM-Solver++, in tables of the same size."""
    ones, zeros = np.ones_like(found.l), np.zeros_like(found.l)
    return integrated(found.lambdas, ones, zeros, zeros, zeros[0])


@pytest.fixture(scope="module")
def mixture():
    rng = np.random.default_rng(0)
    images = MEANS[rng.integers(0, 3, 4000)] + 0.3 * jnp.asarray(
        rng.normal(size=(4000, *SHAPE)), jnp.float32
    )
    parts = parts_of(mixture_x0(SCHEDULE, MEANS, 0.3), images)
    return parts[0], estimate(SCHEDULE, parts, 64)


def test_a_gaussian_of_independent_numbers_has_the_closed_form():
    """l = (1 - ab) / (ab std^2 + 1 - ab) and f = -mean l whatever x, so that s = 0 and b = -mean l'."""
    mean, std = (
        np.array([0.3, -0.2, 0.0, 0.5]).reshape(SHAPE),
        np.array([0.5, 0.2, 1.0, 0.7]).reshape(SHAPE),
    )
    covariance = jnp.asarray(np.diag(std.reshape(-1) ** 2), jnp.float32)
    network = gaussian_x0(SCHEDULE, jnp.asarray(mean, jnp.float32), covariance)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, *SHAPE)), jnp.float32)
    found = estimate(SCHEDULE, parts_of(network, images), 200)
    lambdas = found.lambdas.astype(float).reshape(-1, 1, 1, 1)
    l = 1 / (1 + std**2 * np.exp(2 * lambdas))
    np.testing.assert_allclose(found.l, l, atol=2e-5)
    np.testing.assert_array_equal(found.s, 0)
    np.testing.assert_allclose(found.b, mean * 2 * (l - l**2), atol=0.01)  # l' is a difference
    np.testing.assert_allclose(found.p, -mean * l, atol=1e-3)
    L = -np.log(std**2 + np.exp(-2 * lambdas)) / 2
    np.testing.assert_allclose(found.L, L - L[0], atol=1e-3)

    t = np.asarray(SCHEDULE.timestep_at(jnp.linspace(-6.0, 6.0, 6)))
    grid, keys = grid_from_pairs(SCHEDULE, t[:-1], t[1:]), sample_keys(0, jnp.arange(8))
    xT, denoise = initial_noise(keys, SHAPE), make_denoiser(SCHEDULE, network, "x0", None)
    a, b, a_next, b_next = (
        float(level) for level in (grid[4][0], grid[5][0], grid[6][-1], grid[7][-1])
    )
    grown = np.sqrt((a_next * std) ** 2 + b_next**2) / np.sqrt((a * std) ** 2 + b**2)
    wanted = a_next * mean + (np.asarray(xT) - a * mean) * grown
    own, other = (
        np.max(np.abs(sample(keys, denoise, s, grid, xT) - wanted))
        for s in (with_statistics(found, 3, True), with_statistics(of_x0(found), 3, True))
    )
    assert own < 1e-3
    assert other > 20 * own


def test_a_gaussian_of_dependent_numbers_has_the_closed_form():
    """f is linear in x, so that s and b follow from covariances; x itself has covariance ab C + (1 - ab) I."""
    rng = np.random.default_rng(1)
    root, mean = rng.normal(size=(4, 4)) / 2, rng.normal(size=4) / 2
    cov = root @ root.T
    images = jnp.asarray(
        (mean + rng.normal(size=(20000, 4)) @ root.T).reshape(-1, *SHAPE), jnp.float32
    )
    network = gaussian_x0(
        SCHEDULE, jnp.asarray(mean.reshape(SHAPE), jnp.float32), jnp.asarray(cov, jnp.float32)
    )
    found = estimate(SCHEDULE, parts_of(network, images), 60)

    def exact_l(lam):
        ab = 1 / (1 + np.exp(-2 * lam))
        return np.diag(np.eye(4) - ab * cov @ np.linalg.inv(ab * cov + (1 - ab) * np.eye(4)))

    def map_of_f(lam):
        """f = A (y - mean) + c, with y = x / alpha."""
        x0 = cov @ np.linalg.inv(cov + np.exp(-2 * lam) * np.eye(4))
        return np.diag(1 - exact_l(lam)) - x0, -exact_l(lam) * mean

    for i in (15, 30, 45):
        lam, d = float(found.lambdas[i]), 1e-4
        (a, c), (a1, c1), (a0, c0) = map_of_f(lam), map_of_f(lam + d), map_of_f(lam - d)
        of_y = cov + np.exp(-2 * lam) * np.eye(4)
        along = (a1 - a0) / (2 * d) - a @ (np.exp(-2 * lam) * np.linalg.inv(of_y))  # y' = x0 - y
        s = np.diag(a @ of_y @ along.T) / np.diag(a @ of_y @ a.T)
        b = (c1 - c0) / (2 * d) - s * c
        np.testing.assert_allclose(found.l[i].reshape(-1), exact_l(lam), atol=0.01)
        np.testing.assert_allclose(found.s[i].reshape(-1), s, atol=0.1)
        np.testing.assert_allclose(found.b[i].reshape(-1), b, atol=0.05)


@jax.jit
def f_beside(denoise, images, noise, t, lam, off, l):
    """f at lambda + off along the ODE from xt at t, by a midpoint step in y = x / alpha.

    `l` is that of lambda + off.
    """

    def x0(y, lam):
        return denoise(y * jnp.sqrt(jax.nn.sigmoid(2 * lam)), SCHEDULE.timestep_at(2 * lam)).x0

    alpha, std = SCHEDULE.signal_and_noise(t)
    y = (alpha * images + std * noise) / alpha
    middle = y + off / 2 * (x0(y, lam) - y)
    y = y + off * (x0(middle, lam + off / 2) - middle)
    return (1 - l)[None] * y - x0(y, lam + off)


def test_s_and_b_are_the_least_squares_fit_of_a_mixture(mixture):
    """f' by a difference along the ODE, independent of any Jacobian."""
    (denoise, images, noise, _), found = mixture
    for i in (20, 32, 44):
        t, lam, d = levels(SCHEDULE, 64)[i], found.lambdas[i], 0.02

        def f_at(off, t=t, lam=lam):
            l = [
                np.interp(float(lam) + off, found.lambdas, found.l[:, r, c, 0])
                for r in (0, 1)
                for c in (0, 1)
            ]
            numbers = (np.float32(value) for value in (t, lam, off, np.reshape(l, SHAPE)))
            return np.asarray(f_beside(denoise, images, noise, *numbers), float)

        f, along = f_at(0.0), (f_at(d) - f_at(-d)) / (2 * d)
        wanted = [np.polyfit(f[:, r, c, 0], along[:, r, c, 0], 1) for r in (0, 1) for c in (0, 1)]
        np.testing.assert_allclose(found.s[i].reshape(-1), [w[0] for w in wanted], atol=0.05)
        np.testing.assert_allclose(found.b[i].reshape(-1), [w[1] for w in wanted], atol=0.02)


@jax.jit
def mean_and_deviation_of_f(denoise, images, noise, t, l):
    """Of f = (1 - l) xt / alpha - x0 at one level, over the images."""
    alpha, std = SCHEDULE.signal_and_noise(t)
    xt = alpha * images + std * noise
    f = (1 - l)[None] * xt / alpha - denoise(xt, t).x0
    return jnp.mean(f, 0), jnp.std(f, 0)


def test_with_an_exact_denoiser_p_is_the_mean_of_f_and_S_its_log_deviation(mixture):
    """What l, s and b amount to: var f changes by 2 cov(f, f') and its mean by E f' where x follows the ODE."""
    (denoise, images, noise, _), found = mixture
    each = [
        mean_and_deviation_of_f(denoise, images, noise, np.float32(t), l)
        for t, l in zip(levels(SCHEDULE, 64), found.l, strict=True)
    ]
    mean, std = (np.stack(values) for values in zip(*each, strict=True))
    np.testing.assert_allclose(found.p, mean, atol=0.03)
    change = np.log(std / std[16])
    np.testing.assert_allclose((found.S - found.S[16])[16:48], change[16:48], atol=0.15)


def exact_end(x, start, stop, count=400):
    """x at lambda = `stop` from x at `start` along y' = x0 - y: Runge-Kutta steps in float64."""
    means = np.asarray(MEANS, float)[None]

    def x0(y, lam):
        variance = 0.3**2 + np.exp(-2 * lam)  # of y = xt / alpha about each mean
        off = y[:, None] - means
        share = np.exp(-np.sum(off**2, (2, 3, 4), keepdims=True) / (2 * variance))
        share /= share.sum(1, keepdims=True)
        return np.sum(share * (means + 0.3**2 / variance * off), 1)

    def slope(y, lam):
        return x0(y, lam) - y

    def alpha(lam):
        return 1 / np.sqrt(1 + np.exp(-2 * lam))

    y, h = np.asarray(x, float) / alpha(start), (stop - start) / count
    for lam in start + h * np.arange(count):
        a = slope(y, lam)
        b = slope(y + h / 2 * a, lam + h / 2)
        c = slope(y + h / 2 * b, lam + h / 2)
        d = slope(y + h * c, lam + h)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return alpha(stop) * y


def test_a_mixture_needs_fewer_steps(mixture):
    (denoise, *_), found = mixture
    keys = sample_keys(9, jnp.arange(256))
    xT = initial_noise(keys, SHAPE)
    t = np.asarray(SCHEDULE.timestep_at(jnp.linspace(SCHEDULE.log_snr[-1], 6.0, 6)))
    grid = grid_from_pairs(SCHEDULE, t[:-1], t[1:])
    wanted = exact_end(xT, float(SCHEDULE.log_snr[-1]) / 2, 3.0)
    own, others = (
        np.sqrt(np.mean((sample(keys, denoise, sampler, grid, xT) - wanted) ** 2))
        for sampler in (with_statistics(found, 3, True), with_statistics(of_x0(found), 3, True))
    )
    assert own < 0.75 * others


def saturated(xt, t):
    """A network whose output is no linear function of xt."""
    return jnp.tanh(2 * xt)


def test_batches_change_nothing(mixture):
    """Each image has the noise and the signs of its own key, whatever the batch."""
    images = mixture[0].images[:40]
    whole, halves = (parts_of(Partial(saturated), images, pieces) for pieces in (1, 2))
    for ours, *theirs in zip(whole[0][1:], *(half[1:] for half in halves), strict=True):
        np.testing.assert_array_equal(ours, np.concatenate(theirs))
    assert set(np.unique(whole[0].signs)) == {-1, 1}
    seen = []
    one, two = (estimate(SCHEDULE, parts, 8, lambda: seen.append(1)) for parts in (whole, halves))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, two)
    assert len(seen) == 2 * len(one.lambdas) == 16


@pytest.mark.parametrize(
    "betas", [linear_betas(), zero_terminal_snr(linear_betas()), linear_betas(20, 1e-3, 0.6)]
)
def test_levels_are_between_timesteps_that_have_signal(betas):
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
        found = integrated(x.reshape(-1), np.cos(x), 0.5 + 0 * x, np.sin(x), 0 * x[0])
        p = (np.exp(x / 2) - np.cos(x) - np.sin(x) / 2) / 1.25
        errors.append(
            [
                np.max(np.abs(a - b))
                for a, b in ((found.L, np.sin(x)), (found.S, x / 2), (found.p, p))
            ]
        )
    assert np.all(np.array(errors[1]) < 2e-5), errors
    assert np.all(np.array(errors[1])[[0, 2]] < np.array(errors[0])[[0, 2]] / 5)


def test_f_that_does_not_vary_has_no_s():
    n = np.ones((5, *SHAPE))
    tables = fit(np.linspace(0, 1, 5), 0.5 * n, n, n, 2 * n, 1e-13 * n, 0 * n, 1e-13 * n, n)
    np.testing.assert_array_equal(tables.s, 0)
    np.testing.assert_array_equal(tables.b, 2)


def test_a_file_holds_them_all(mixture, tmp_path):
    found = load(save(mixture[1], tmp_path / "new" / "statistics.npz"))
    jax.tree.map(np.testing.assert_array_equal, found, mixture[1])
    samplers.make("dpm_solver_v3", statistics=str(tmp_path / "new" / "statistics.npz"))
