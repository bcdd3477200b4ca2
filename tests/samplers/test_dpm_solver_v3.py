"""DPM-Solver-v3 against the solvers it contains, exact solutions, and textbook formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.samplers import SCHEDULE, SHAPE, grid_of, mixture, naive_walk, rows_of, step

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import grid_from_pairs
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.samplers import initial_noise, sample_keys
from ddpm_jax.samplers.dpm_solver_v3 import X0, Statistics, dpm_solver_v3, load, with_statistics

KEYS = sample_keys(0, jnp.arange(8))
XT = initial_noise(KEYS, SHAPE)
NODES = 120
LAMBDAS = np.linspace(-3.5, 3.5, NODES).astype(np.float32)
ZERO, LINE = np.zeros((NODES, 1, 1, 1), np.float32), LAMBDAS.reshape(-1, 1, 1, 1)
WIDE_X0 = Statistics(LAMBDAS, ZERO + 1, ZERO, ZERO, LINE, ZERO, ZERO)
EPS = Statistics(LAMBDAS, ZERO, ZERO - 1, ZERO, ZERO, -LINE, ZERO)  # f = e^-lambda eps
MU, STD = 0.3, 0.5
GAUSSIAN, CURVED = mixture(MU, STD), mixture()


x0_of_curved = jax.jit(lambda xt, t: CURVED(xt, t).x0)


def walk(sampler, grid, denoise=CURVED):
    """The last state."""
    *_, x = naive_walk(sampler, KEYS, denoise, grid, XT)
    return x


def to_a_level(steps, low=-6.0, high=6.0):
    """A grid at even steps of log SNR that ends at a level with noise."""
    t = np.asarray(SCHEDULE.timestep_at(jnp.linspace(low, high, steps + 1)))
    return grid_from_pairs(SCHEDULE, t[:-1], t[1:])


def gaussian_statistics():
    """Those of N(MU, STD^2), exactly: f = -MU l, whatever x, so that s is free."""
    lambdas = np.linspace(-3.5, 3.5, NODES)
    l = 1 / (1 + STD**2 * np.exp(2 * lambdas))
    slope = -2 * STD**2 * np.exp(2 * lambdas) * l**2
    L = -np.log(STD**2 + np.exp(-2 * lambdas)) / 2
    tables = (
        np.asarray(each.reshape(-1, 1, 1, 1), np.float32)
        for each in (l, 0 * l, -MU * slope, L, 0 * l, -MU * l)
    )
    return Statistics(np.asarray(lambdas, np.float32), *tables)


def flow_of_a_gaussian(first, row, xT):
    """Where the ODE takes xT from the first row by the end of another."""
    a, b = float(first.sqrt_alpha_bar), float(first.sqrt_one_minus_alpha_bar)
    a_next, b_next = float(row.sqrt_alpha_bar_next), float(row.sqrt_one_minus_alpha_bar_next)
    grown = np.sqrt((a_next * STD) ** 2 + b_next**2) / np.sqrt((a * STD) ** 2 + b**2)
    return a_next * MU + (np.asarray(xT, float) - a * MU) * grown


def error_of_a_gaussian(sampler, steps):
    grid = to_a_level(steps)
    x = walk(sampler, grid, GAUSSIAN)
    first, *_, last = [*rows_of(grid)] * 2
    return np.max(np.abs(np.asarray(x) - flow_of_a_gaussian(first, last, XT)))


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("statistics", "order", "other"),
    [(WIDE_X0, 1, "ddim"), (EPS, 1, "ddim"), (WIDE_X0, 3, "dpmpp_3m")],
    ids=["x0", "eps", "3m"],
)
def test_with_fixed_statistics_it_is_a_known_solver(statistics, order, other, steps):
    found = walk(with_statistics(statistics, order, False), grid_of(steps))
    np.testing.assert_allclose(found, walk(samplers.make(other), grid_of(steps)), atol=2e-5)


def test_without_a_file_it_is_that_of_x0():
    made = dpm_solver_v3(), with_statistics(X0, 3, True)
    found, wanted = (walk(sampler, grid_of(10)) for sampler in made)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("start", [0.2, 5.0, -40.0])
def test_the_form_of_x0_is_the_same_wherever_its_table_lies(start):
    moved = X0._replace(lambdas=X0.lambdas + np.float32(start))
    found, wanted = (walk(with_statistics(s, 3, True), grid_of(10)) for s in (moved, X0))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_two_steps_of_order_2_are_the_line_through_two_f():
    """Eq. 14 with l = 0.6, s = -0.3, b = 0.2, all integrals by a fine sum in float64."""
    l, s, b = 0.6, -0.3, 0.2
    tables = [np.full((2, 1, 1, 1), value, np.float32) for value in (l, s, b)]
    at = np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    integrals = [np.asarray(each, np.float32) for each in (l * at, s * at, np.exp(s * at) - b / s)]
    # p' = s p + b is so at both ends; the cubic between them is what the test allows for.
    sampler = with_statistics(
        Statistics(np.array([-1, 1], np.float32), *tables, *integrals), 2, False
    )
    grid = to_a_level(2, -1.0, 1.0)
    states = list(naive_walk(sampler, KEYS, CURVED, grid, XT))

    lambdas, x = np.array([-0.5, 0.0, 0.5]), np.asarray(XT, float)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lambdas))
    f = []
    for i in range(2):
        x0 = np.asarray(x0_of_curved(np.float32(x), grid.t[i]), float)
        f.append((1 - l) * x / alpha[i] - x0)
        r = np.linspace(lambdas[i], lambdas[i + 1], 2001)[:, None, None, None, None]

        def g(value, off):
            return np.exp(-s * off) * value - b / s * (1 - np.exp(-s * off))  # Eq. 8

        off = r - lambdas[i]
        slope = (
            0
            if i == 0
            else (g(f[1], 0) - g(f[0], lambdas[0] - lambdas[1])) / (lambdas[1] - lambdas[0])
        )
        bias = b / s * (1 - np.exp(-s * off))
        integrand = np.exp((l + s) * off) * (g(f[i], 0) + off * slope + bias)
        integral = np.trapezoid(integrand, r[:, 0, 0, 0, 0], axis=0)
        h = lambdas[i + 1] - lambdas[i]
        x = alpha[i + 1] * np.exp(-l * h) * (x / alpha[i] - integral)  # Eq. 9
        np.testing.assert_allclose(states[i], x, atol=5e-4)
        x = np.asarray(states[i], float)


@pytest.mark.parametrize(("order", "corrector"), [(1, False), (2, True), (3, False), (3, True)])
@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-3), (3, 3e-5), (10, 3e-5)])
def test_a_gaussian_is_solved_exactly_in_few_steps(order, corrector, steps, tolerance):
    """One step is as good as 16 nodes of quadrature over all levels."""
    error = error_of_a_gaussian(with_statistics(gaussian_statistics(), order, corrector), steps)
    assert error < tolerance
    assert error_of_a_gaussian(samplers.make("dpmpp_3m"), steps) > 100 * error


def smooth_statistics():
    """Statistics that have nothing to do with the data."""
    lambdas = np.linspace(-3.5, 3.5, 400).reshape(-1, 1, 1, 1)
    l, s, p = 0.5 - 0.3 * np.tanh(lambdas), 0.5 * np.sin(lambdas), 0.2 * np.cos(lambdas)
    L, S = 0.5 * lambdas - 0.3 * np.log(np.cosh(lambdas)), -0.5 * np.cos(lambdas)
    return Statistics(lambdas.reshape(-1), l, s, -0.2 * np.sin(lambdas) - s * p, L, S, p)


@pytest.fixture
def log_snr_schedule():
    """Float64 throughout, and a schedule in it whose log SNR falls linearly, so that only the solver has kinks."""
    with jax.enable_x64(True):
        log_snr = jnp.linspace(9.0, -9.0, 1000)
        alpha_bar = jax.nn.sigmoid(log_snr)
        log_alpha = jnp.diff(jnp.log(alpha_bar), prepend=0.0)
        tables = (
            -jnp.expm1(log_alpha),
            log_alpha,
            alpha_bar,
            jnp.sqrt(alpha_bar),
            jnp.sqrt(1 - alpha_bar),
            log_snr,
        )
        yield NoiseSchedule(*tables)


@pytest.mark.parametrize(("order", "corrector"), [(2, False), (3, True)])
def test_any_smooth_statistics_solve_the_ode_with_the_order_it_states(
    log_snr_schedule, order, corrector
):
    sampler = with_statistics(smooth_statistics(), order, corrector)
    denoise = make_denoiser(
        log_snr_schedule,
        mixture_x0(log_snr_schedule, jnp.full((1, 1, 1, 1), MU, float), STD),
        "x0",
        None,
    )
    xT = np.linspace(-2, 2, 8).reshape(-1, 1, 1, 1)

    def error(steps):
        t = np.interp(np.linspace(6, -6, steps + 1), np.linspace(-9, 9, 1000), np.arange(1000))
        grid, x = list(rows_of(grid_from_pairs(log_snr_schedule, t[:-1], t[1:]))), xT
        state = sampler.init(jnp.asarray(xT))
        for i, row in enumerate(grid):
            x, state = step(sampler, KEYS, denoise, x, row, state)
            wanted = flow_of_a_gaussian(grid[0], row, xT)
            x = wanted if i < 4 else x
        return np.max(np.abs(np.asarray(x) - wanted))

    coarse, fine = error(80), error(160)
    assert fine < 0.02
    assert sampler.order == order + (corrector and order > 1)
    assert abs(np.log2(coarse / fine) - sampler.order) < 0.4


def test_numbers_of_a_picture_have_their_own_statistics():
    exact = gaussian_statistics()
    both = exact, exact._replace(p=np.zeros_like(exact.p))
    mixed = jax.tree.map(
        lambda *tables: np.concatenate(tables, 2) if tables[0].ndim == 4 else tables[0], *both
    )
    made = [with_statistics(each, 3, True) for each in (mixed, *both)]
    found, *wanted = (walk(sampler, grid_of(8), GAUSSIAN) for sampler in made)
    assert np.max(np.abs(wanted[0] - wanted[1])) > 1e-4
    for i in range(2):
        np.testing.assert_allclose(found[:, :, i], wanted[i][:, :, i], atol=1e-5)


def test_statistics_of_other_pictures_are_refused():
    wide = jax.tree.map(lambda table: np.repeat(table, 5, 1) if table.ndim == 4 else table, X0)
    with pytest.raises(ValueError, match=r"of pictures \(5, 1, 1\), not \(1, 2, 1\)"):
        with_statistics(wide, 2, True).init(XT)


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no\.npz is not there: python -m ddpm_jax.statistics"
    ):
        dpm_solver_v3(statistics=str(tmp_path / "no.npz"))
    for name, write in (
        ("text.npz", lambda p: p.write_text("x")),
        ("other.npz", lambda p: np.savez(p, images=[1])),
    ):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} holds no statistics"):
            load(tmp_path / name)
