"""The order of convergence of every sampler, measured in float64 on the ODE of a mixture.

A new sampler is found by its module, and every value of its options that are a choice is tried.
"""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.samplers import rows_of, step
from scipy.special import ndtr

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import grid_from_pairs
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.samplers import sample_keys

MEANS, STD, WEIGHTS = np.array([-0.7, 0.2, 0.9]), 0.4, np.array([0.3, 0.4, 0.3])
POINTS = np.linspace(-1.8, 1.8, 7)
FORCED = 5
STEPS = 64, 128


def choices(name):
    """The default options, and each choice of a Literal or a bool beside the others' defaults."""
    function = samplers.factory(name)
    hints = typing.get_type_hints(function)
    found = [{}]
    for p in inspect.signature(function).parameters.values():
        values = (True, False) if hints[p.name] is bool else typing.get_args(hints[p.name])
        literal = hints[p.name] is bool or typing.get_origin(hints[p.name]) is typing.Literal
        found += [{p.name: value} for value in values if literal and value != p.default]
    return found


CASES = [(name, options) for name in samplers.names() for options in choices(name)]
CASES = [case for case in CASES if samplers.make(case[0], **case[1]).order]
IDS = [" ".join([name, *(f"{key}={options[key]}" for key in options)]) for name, options in CASES]


def ode_solution(x, a, b, a_next, b_next):
    """Where the probability-flow ODE takes the points x: in one dimension it keeps quantiles."""

    def cdf(y, a, b):
        return np.sum(WEIGHTS * ndtr((y[:, None] - a * MEANS) / np.sqrt(a**2 * STD**2 + b**2)), 1)

    quantiles = cdf(x, a, b)
    low, high = np.full_like(x, -20.0), np.full_like(x, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, a_next, b_next) < quantiles
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def solved_grid(schedule, steps):
    """A grid's rows over log SNR -3 to 3, and where the ODE takes `POINTS` by the end of each."""
    t = np.interp(np.linspace(3, -3, steps + 1), np.linspace(-8, 6, 1401), np.arange(1401))
    grid = list(rows_of(grid_from_pairs(schedule, t[:-1], t[1:])))
    begin = grid[0].sqrt_alpha_bar, grid[0].sqrt_one_minus_alpha_bar
    ends = [(row.sqrt_alpha_bar_next, row.sqrt_one_minus_alpha_bar_next) for row in grid]
    return grid, [ode_solution(POINTS, *begin, *end).reshape(-1, 1, 1, 1) for end in ends]


@pytest.fixture(scope="module")
def walks():
    """A denoiser and two grids with their solutions, in float64, where log SNR is linear in t."""
    log_snr = np.linspace(8, -6, 1401)
    log_alpha_bar = -np.logaddexp(0, -log_snr)
    log_alpha = np.diff(log_alpha_bar, prepend=0)
    alpha_bar, one_minus = np.exp(log_alpha_bar), -np.expm1(log_alpha_bar)
    levels = alpha_bar, np.sqrt(alpha_bar), np.sqrt(one_minus), log_snr
    tables = -np.expm1(log_alpha), log_alpha, *levels
    with jax.enable_x64(True):
        schedule = NoiseSchedule(*(jnp.asarray(table) for table in tables))
        means = jnp.asarray(MEANS.reshape(3, 1, 1, 1))
        network = mixture_x0(schedule, means, STD, jnp.asarray(WEIGHTS))
        solved = [solved_grid(schedule, steps) for steps in STEPS]
        yield make_denoiser(schedule, network, "x0", None), solved


def ode_error(sampler, denoise, grid, solution):
    """The largest error at the end of a walk whose first `FORCED` states are the exact ones."""
    keys = sample_keys(0, jnp.arange(len(POINTS)))
    xt = POINTS.reshape(-1, 1, 1, 1)
    state = sampler.init(jnp.asarray(xt))
    for i, row in enumerate(grid):
        xt, state = step(sampler, keys, denoise, xt, row, state)
        xt = solution[i] if i < FORCED else xt
    return float(np.max(np.abs(xt - solution[-1])))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_error_falls_with_the_order_the_sampler_states(walks, name, options):
    denoise, solved = walks
    sampler = samplers.make(name, **options)
    coarse, fine = (ode_error(sampler, denoise, *grid) for grid in solved)
    assert fine < 0.01
    assert abs(np.log2(coarse / fine) - sampler.order) < 0.25
