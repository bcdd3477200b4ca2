"""The order of convergence of every sampler, measured in float64 on the ODE of a mixture.

Samplers are found by their modules. Every value of a Literal or bool option is tried.
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

MEANS = np.array([-0.7, 0.2, 0.9])
STD = 0.4
WEIGHTS = np.array([0.3, 0.4, 0.3])
POINTS = np.linspace(-1.8, 1.8, 7)
EXACT_STEPS = 5
STEPS = 64, 128


def choices(name):
    """The default options, and each other value of one Literal or bool option."""
    function = samplers.factory(name)
    hints = typing.get_type_hints(function)
    cases = [{}]
    for p in inspect.signature(function).parameters.values():
        values = ()
        if hints[p.name] is bool:
            values = True, False
        elif typing.get_origin(hints[p.name]) is typing.Literal:
            values = typing.get_args(hints[p.name])
        cases += [{p.name: value} for value in values if value != p.default]
    return cases


CASES = [(name, options) for name in samplers.names() for options in choices(name)]
CASES = [case for case in CASES if samplers.make(case[0], **case[1]).order]
IDS = [" ".join([name, *(f"{key}={options[key]}" for key in options)]) for name, options in CASES]


def ode_solution(x, a, b, a_next, b_next):
    """The points to which the probability-flow ODE moves the points x.

    In one dimension the ODE keeps quantiles. They are inverted by bisection.
    """

    def cdf(y, a, b):
        return np.sum(WEIGHTS * ndtr((y[:, None] - a * MEANS) / np.sqrt(a**2 * STD**2 + b**2)), 1)

    quantiles = cdf(x, a, b)
    low = np.full_like(x, -20.0)
    high = np.full_like(x, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, a_next, b_next) < quantiles
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    return (low + high) / 2


def solved_grid(schedule, steps):
    """The rows of a grid over log SNR -3 to 3, and the ODE's solution at the end of each row."""
    t = np.interp(np.linspace(3, -3, steps + 1), np.linspace(-8, 6, 1401), np.arange(1401))
    grid = list(rows_of(grid_from_pairs(schedule, t[:-1], t[1:])))
    begin = grid[0].sqrt_alpha_bar, grid[0].sqrt_one_minus_alpha_bar
    ends = [(row.sqrt_alpha_bar_next, row.sqrt_one_minus_alpha_bar_next) for row in grid]
    return grid, [ode_solution(POINTS, *begin, *end).reshape(-1, 1, 1, 1) for end in ends]


@pytest.fixture(scope="module")
def walks():
    """A denoiser and two grids with their solutions, in float64. log SNR is linear in t."""
    log_snr = np.linspace(8, -6, 1401)
    log_alpha_bar = -np.logaddexp(0, -log_snr)
    log_alpha = np.diff(log_alpha_bar, prepend=0)
    alpha_bar = np.exp(log_alpha_bar)
    levels = alpha_bar, np.sqrt(alpha_bar), np.sqrt(-np.expm1(log_alpha_bar)), log_snr
    tables = -np.expm1(log_alpha), log_alpha, *levels
    with jax.enable_x64(True):
        schedule = NoiseSchedule(*(jnp.asarray(table) for table in tables))
        means = jnp.asarray(MEANS.reshape(3, 1, 1, 1))
        network = mixture_x0(schedule, means, STD, jnp.asarray(WEIGHTS))
        solved = [solved_grid(schedule, steps) for steps in STEPS]
        yield make_denoiser(schedule, network, "x0", None), solved


def ode_error(sampler, denoise, grid, solution):
    """The maximum error at the end of a walk whose first `EXACT_STEPS` states are exact."""
    keys = sample_keys(0, jnp.arange(len(POINTS)))
    xt = POINTS.reshape(-1, 1, 1, 1)
    state = sampler.init(jnp.asarray(xt))
    for i, row in enumerate(grid):
        xt, state = step(sampler, keys, denoise, xt, row, state)
        xt = solution[i] if i < EXACT_STEPS else xt
    return float(np.max(np.abs(xt - solution[-1])))


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_error_falls_with_the_order_the_sampler_states(walks, name, options):
    denoise, solved = walks
    sampler = samplers.make(name, **options)
    coarse, fine = (ode_error(sampler, denoise, *grid) for grid in solved)
    assert fine < 0.01
    assert abs(np.log2(coarse / fine) - sampler.order) < 0.25
