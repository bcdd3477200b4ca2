"""Every sampler against what is known exactly: a mixture's ODE in closed form, a Gaussian's mean and covariance.

A new sampler is found here by its module, and every value of its options that are a choice is tried.
"""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import gaussian_x0, mixture_x0
from ddpm_jax.diffusion.grid import make_grid, rows, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule, from_betas, linear, squaredcos, zero_terminal_snr
from ddpm_jax.samplers import initial_noise, sample, sample_keys

NAMES = samplers.names()
MEANS, STD, WEIGHTS = np.array([-0.7, 0.2, 0.9]), 0.4, np.array([0.3, 0.4, 0.3])
POINTS = np.linspace(-1.8, 1.8, 7)
FORCED = 5


def choices(name):
    """The sampler's default options, and each choice of a Literal or a bool beside the others' defaults."""
    function = samplers.find(name)
    hints = typing.get_type_hints(function)
    found = [{}]
    for p in inspect.signature(function).parameters.values():
        values = (True, False) if hints[p.name] is bool else typing.get_args(hints[p.name])
        literal = hints[p.name] is bool or typing.get_origin(hints[p.name]) is typing.Literal
        found += [{p.name: value} for value in values if literal and value != p.default]
    return found


CASES = [(name, options) for name in NAMES for options in choices(name) if samplers.make(name, **options).order]
IDS = [" ".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in CASES]


@pytest.fixture
def log_snr_schedule():
    """Float64 throughout, and a schedule in it whose log SNR falls linearly from 8 to -6."""
    log_snr = np.linspace(8, -6, 1401)
    log_alpha_bar = -np.logaddexp(0, -log_snr)
    log_alpha = np.diff(log_alpha_bar, prepend=0)
    alpha_bar = np.exp(log_alpha_bar)
    tables = -np.expm1(log_alpha), log_alpha, alpha_bar, np.sqrt(alpha_bar), np.sqrt(-np.expm1(log_alpha_bar)), log_snr
    with jax.enable_x64(True):
        yield NoiseSchedule(*(jnp.asarray(table) for table in tables))


def ode_solution(x, a, b, a_next, b_next):
    """Where the probability-flow ODE takes the points x: in one dimension it keeps each point's quantile."""

    def cdf(y, a, b):
        return np.sum(WEIGHTS * ndtr((y[:, None] - a * MEANS) / np.sqrt(a**2 * STD**2 + b**2)), 1)

    quantiles = cdf(x, a, b)
    low, high = np.full_like(x, -20.0), np.full_like(x, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, a_next, b_next) < quantiles
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def ode_error(sampler, schedule, steps):
    """The largest error after a walk over log SNR -3 to 3, started with `FORCED` steps along the exact solution."""
    t = np.interp(np.linspace(3, -3, steps + 1), np.linspace(-8, 6, 1401), np.arange(1401))
    grid = rows(schedule, t[:-1], t[1:])
    network = mixture_x0(schedule, jnp.asarray(MEANS.reshape(3, 1, 1, 1)), STD, jnp.asarray(WEIGHTS))
    denoise = make_denoiser(schedule, network, "x0", None)
    keys = sample_keys(0, jnp.arange(len(POINTS)))
    xt = jnp.asarray(POINTS.reshape(-1, 1, 1, 1))
    states, memory = POINTS, sampler.init(xt)
    begin = float(grid.sqrt_alpha_bar[0]), float(grid.sqrt_one_minus_alpha_bar[0])
    for i in range(steps):
        row = grid.row(i)
        xt, memory = _step(sampler, keys, denoise, xt, row, memory)
        states = ode_solution(POINTS, *begin, float(row.sqrt_alpha_bar_next), float(row.sqrt_one_minus_alpha_bar_next))
        if i < FORCED:
            xt = jnp.asarray(states.reshape(-1, 1, 1, 1))
    return float(np.max(np.abs(np.asarray(xt).reshape(-1) - states)))


_step = jax.jit(lambda sampler, keys, denoise, xt, row, memory: sampler.step(keys, denoise, xt, row, memory))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_error_falls_with_the_order_the_sampler_states(log_snr_schedule, name, options):
    sampler = samplers.make(name, **options)
    coarse, fine = (ode_error(sampler, log_snr_schedule, steps) for steps in (64, 128))
    assert fine < 0.01
    assert abs(np.log2(coarse / fine) - sampler.order) < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_states_an_order_unless_it_adds_noise(name):
    sampler, grid = samplers.make(name), make_grid(LINEAR, spaced(1000, 10))
    xt = jnp.full((2, 1, 1, 1), 0.5)
    network = mixture_x0(LINEAR, jnp.zeros((1, 1, 1, 1)), 0.5)
    denoise = make_denoiser(LINEAR, network, "x0", None)
    a, b = (
        _step(sampler, sample_keys(seed, jnp.arange(2)), denoise, xt, grid.row(4), sampler.init(xt))[0]
        for seed in (0, 1)
    )
    assert bool(jnp.all(a == b)) == (sampler.order is not None)


LINEAR = from_betas(linear())
MEAN = np.array([0.3, -0.2, 0.0, 0.5])
ROOT = np.array([[0.5, 0, 0, 0], [0.3, 0.4, 0, 0], [-0.2, 0.1, 0.3, 0], [0.1, 0.1, 0.1, 0.1]])
COVARIANCE = ROOT @ ROOT.T
COUNT = 8192


NOISY = [("ddim", {"eta": 0.5}), ("edm", {"S_churn": 40.0}), ("ddpm", {"variance": "fixed_large"})]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *NOISY])
def test_mean_and_covariance_of_a_gaussian_are_recovered(name, options):
    network = gaussian_x0(LINEAR, jnp.asarray(MEAN.reshape(2, 2, 1), jnp.float32), jnp.asarray(COVARIANCE, jnp.float32))
    denoise = make_denoiser(LINEAR, network, "x0", None)
    keys = sample_keys(0, jnp.arange(COUNT))
    xT = initial_noise(keys, (2, 2, 1))
    x0 = sample(keys, denoise, samplers.make(name, **options), make_grid(LINEAR, spaced(1000, 500)), xT)
    found = np.asarray(x0, float).reshape(COUNT, 4)
    std = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(found.mean(0) - MEAN) < 5 * std / np.sqrt(COUNT) + 0.01 * std)
    # The variance of a sample covariance of a Gaussian is (C_ii C_jj + C_ij^2) / n.
    error = np.sqrt((np.outer(std, std) ** 2 + COVARIANCE**2) / COUNT)
    assert np.all(np.abs(np.cov(found.T) - COVARIANCE) < 5 * error + 0.02 * np.outer(std, std))


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *NOISY])
def test_mean_and_variance_of_a_mixture_are_recovered(name, options):
    network = mixture_x0(LINEAR, jnp.asarray(MEANS.reshape(3, 1, 1, 1), jnp.float32), STD, jnp.asarray(WEIGHTS))
    denoise = make_denoiser(LINEAR, network, "x0", None)
    keys = sample_keys(0, jnp.arange(COUNT))
    grid = make_grid(LINEAR, spaced(1000, 200))
    x0 = sample(keys, denoise, samplers.make(name, **options), grid, initial_noise(keys, (1, 1, 1)))
    mean, found = np.sum(WEIGHTS * MEANS), np.asarray(x0, float).reshape(-1)
    moments = [np.sum(WEIGHTS * ((MEANS - mean) ** 2 + STD**2))]
    off = MEANS - mean
    moments.append(np.sum(WEIGHTS * (off**3 + 3 * off * STD**2)))
    std = np.sqrt(moments[0])
    assert abs(found.mean() - mean) < 5 * std / np.sqrt(COUNT) + 0.01 * std
    for power, wanted in zip((2, 3), moments, strict=True):
        values = (found - mean) ** power
        assert abs(values.mean() - wanted) < 5 * values.std() / np.sqrt(COUNT) + 0.02 * std**power


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_set_gives_its_own_pictures(name):
    pictures = jax.random.uniform(jax.random.key(1), (5, 3, 3, 1), minval=-1)
    denoise = make_denoiser(LINEAR, mixture_x0(LINEAR, pictures), "x0", None)
    keys = sample_keys(0, jnp.arange(400))
    grid = make_grid(LINEAR, spaced(1000, 100))
    x0 = sample(keys, denoise, samplers.make(name), grid, initial_noise(keys, (3, 3, 1)))
    distance = np.max(np.abs(np.asarray(x0)[:, None] - np.asarray(pictures)[None]), (2, 3, 4))
    assert np.mean(distance.min(1) < 1e-3) > 0.95  # the others were between two pictures to the end
    counts = np.bincount(distance.argmin(1), minlength=5)
    assert np.max(np.abs(counts - 80)) < 5 * np.sqrt(400 * 0.2 * 0.8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "betas", [zero_terminal_snr(linear()), squaredcos(1000, max_beta=1.0)], ids=["zero_terminal", "squaredcos"]
)
def test_pure_noise_is_a_level_to_start_from(name, betas):
    """alpha_bar = 0 at the first row: sigma and the first step in log SNR are infinite."""
    schedule = from_betas(betas)
    point = jnp.linspace(-0.9, 0.9, 4).reshape(1, 2, 2, 1)
    denoise = make_denoiser(schedule, mixture_x0(schedule, point, 0.1), "x0", None)
    keys = sample_keys(0, jnp.arange(64))
    grid = make_grid(schedule, spaced(1000, 50))
    x0 = sample(keys, denoise, samplers.make(name), grid, initial_noise(keys, (2, 2, 1)))
    np.testing.assert_allclose(x0.mean(0), point[0], atol=0.1)
    assert 0.05 < float(x0.std(0).mean()) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_few_steps_from_almost_pure_noise_stay_finite(name):
    """alpha_bar = 2e-9 at the first row: the levels of the next are all but unreachable in rounding."""
    schedule = from_betas(squaredcos())
    denoise = make_denoiser(schedule, mixture_x0(schedule, jnp.full((1, 2, 2, 1), 0.5), 0.1), "x0", None)
    keys, sampler = sample_keys(0, jnp.arange(256)), samplers.make(name)
    for steps in (1, 2, 5):
        grid, xt = make_grid(schedule, spaced(1000, steps)), initial_noise(keys, (2, 2, 1))
        memory = sampler.init(xt)
        for i in range(steps):
            xt, memory = _step(sampler, keys, denoise, xt, grid.row(i), memory)
        assert jnp.all(jnp.isfinite(xt))
