"""DPM-Solver-v3 against the solvers it contains, exact solutions, and its formulas in float64."""

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
NUM_LEVELS = 120
LAMBDAS = np.linspace(-3.5, 3.5, NUM_LEVELS).astype(np.float32)
# Most tables hold a row for each number of an image, and all have as many levels: they share the
# programs.
ZERO = np.zeros((NUM_LEVELS, *SHAPE), np.float32)
LINE = ZERO + LAMBDAS.reshape(-1, 1, 1, 1)
WIDE_X0 = Statistics(LAMBDAS, ZERO + 1, ZERO, ZERO, LINE, ZERO, ZERO)
EPS = Statistics(LAMBDAS, ZERO, ZERO - 1, ZERO, ZERO, -LINE, ZERO)  # f = e^-lambda eps
MU, STD = 0.3, 0.5
GAUSSIAN = mixture(MU, STD)
MIXTURE = mixture()


mixture_x0_jit = jax.jit(lambda xt, t: MIXTURE(xt, t).x0)


def walk(sampler, grid, denoise=MIXTURE):
    """The last state of a walk. Its timesteps are floats, so that all grids share a program."""
    grid = grid._replace(t=np.float32(grid.t), t_next=np.float32(grid.t_next))
    *_, x = naive_walk(sampler, KEYS, denoise, grid, XT)
    return x


def log_snr_grid(steps, low=-6.0, high=6.0):
    """A grid at even steps of log SNR from low to high. It ends with noise left."""
    log_snr = np.asarray(SCHEDULE.log_snr)
    levels = np.linspace(low, high, steps + 1)
    t = np.float32(np.interp(-levels, -log_snr, np.arange(len(log_snr))))
    return grid_from_pairs(SCHEDULE, t[:-1], t[1:])


def gaussian_statistics():
    """The exact statistics of N(MU, STD^2): f = -MU l for every x, so any s will do."""
    lambdas = np.linspace(-3.5, 3.5, NUM_LEVELS)
    l = 1 / (1 + STD**2 * np.exp(2 * lambdas))
    slope = -2 * STD**2 * np.exp(2 * lambdas) * l**2
    L = -np.log(STD**2 + np.exp(-2 * lambdas)) / 2
    columns = l, 0 * l, -MU * slope, L, 0 * l, -MU * l
    tables = (ZERO + np.float32(column.reshape(-1, 1, 1, 1)) for column in columns)
    return Statistics(np.asarray(lambdas, np.float32), *tables)


def gaussian_flow(first, row, xT):
    """The ODE's solution at the end of `row`, from xT at the level of row `first`."""
    a, b = float(first.sqrt_alpha_bar), float(first.sqrt_one_minus_alpha_bar)
    a_next, b_next = float(row.sqrt_alpha_bar_next), float(row.sqrt_one_minus_alpha_bar_next)
    growth = np.sqrt((a_next * STD) ** 2 + b_next**2) / np.sqrt((a * STD) ** 2 + b**2)
    return a_next * MU + (np.asarray(xT, float) - a * MU) * growth


def gaussian_error(sampler, steps):
    grid = log_snr_grid(steps)
    x = walk(sampler, grid, GAUSSIAN)
    rows = list(rows_of(grid))
    return np.max(np.abs(np.asarray(x) - gaussian_flow(rows[0], rows[-1], XT)))


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("statistics", "order", "other"),
    [(WIDE_X0, 1, "ddim"), (EPS, 1, "ddim"), (WIDE_X0, 3, "dpmpp_3m")],
    ids=["x0", "eps", "3m"],
)
def test_fixed_statistics_give_a_known_solver(statistics, order, other, steps):
    x0 = walk(with_statistics(statistics, order, False), grid_of(steps))
    np.testing.assert_allclose(x0, walk(samplers.make(other), grid_of(steps)), atol=2e-5)


def test_the_default_statistics_are_those_of_x0():
    x0 = walk(dpm_solver_v3(), grid_of(10))
    np.testing.assert_array_equal(x0, walk(with_statistics(X0, 3, True), grid_of(10)))


@pytest.mark.parametrize("start", [0.2, 5.0, -40.0])
def test_statistics_of_x0_do_not_depend_on_the_range_of_their_table(start):
    moved = X0._replace(lambdas=X0.lambdas + np.float32(start))
    x0, expected = (walk(with_statistics(s, 3, True), grid_of(10)) for s in (moved, X0))
    np.testing.assert_allclose(x0, expected, atol=2e-5)


def test_two_steps_of_order_2_are_the_line_through_two_f():
    """Eq. 14 with l = 0.6, s = -0.3 and b = 0.2, and all integrals by a fine sum in float64."""
    l, s, b = 0.6, -0.3, 0.2
    tables = [np.full((2, 1, 1, 1), value, np.float32) for value in (l, s, b)]
    ends = np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
    columns = l * ends, s * ends, np.exp(s * ends) - b / s
    integrals = [np.asarray(column, np.float32) for column in columns]
    # p' = s p + b holds at both ends. The tolerance is for the cubic between them.
    statistics = Statistics(np.array([-1, 1], np.float32), *tables, *integrals)
    sampler = with_statistics(statistics, 2, False)
    grid = log_snr_grid(2, -1.0, 1.0)
    states = list(naive_walk(sampler, KEYS, MIXTURE, grid, XT))

    lambdas = np.array([-0.5, 0.0, 0.5])
    x = np.asarray(XT, float)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lambdas))
    f = []
    for i in range(2):
        x0 = np.asarray(mixture_x0_jit(np.float32(x), grid.t[i]), float)
        f.append((1 - l) * x / alpha[i] - x0)
        r = np.linspace(lambdas[i], lambdas[i + 1], 2001)[:, None, None, None, None]

        def g(value, offset):
            return np.exp(-s * offset) * value - b / s * (1 - np.exp(-s * offset))  # Eq. 8

        slope = 0
        if i == 1:
            slope = (g(f[1], 0) - g(f[0], lambdas[0] - lambdas[1])) / (lambdas[1] - lambdas[0])
        offset = r - lambdas[i]
        bias = b / s * (1 - np.exp(-s * offset))
        integrand = np.exp((l + s) * offset) * (g(f[i], 0) + offset * slope + bias)
        integral = np.trapezoid(integrand, r[:, 0, 0, 0, 0], axis=0)
        h = lambdas[i + 1] - lambdas[i]
        x = alpha[i + 1] * np.exp(-l * h) * (x / alpha[i] - integral)  # Eq. 9
        np.testing.assert_allclose(states[i], x, atol=5e-4)
        x = np.asarray(states[i], float)


@pytest.mark.parametrize(("order", "corrector"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize(("steps", "tolerance"), [(1, 1e-3), (3, 3e-5), (10, 3e-5)])
def test_a_gaussian_is_solved_exactly_in_few_steps(order, corrector, steps, tolerance):
    """One step is as exact as the quadrature with 16 nodes over all levels."""
    error = gaussian_error(with_statistics(gaussian_statistics(), order, corrector), steps)
    assert error < tolerance
    assert gaussian_error(samplers.make("dpmpp_3m"), steps) > 100 * error


def smooth_statistics():
    """Statistics that have nothing to do with the data."""
    lambdas = np.linspace(-3.5, 3.5, 400).reshape(-1, 1, 1, 1)
    l = 0.5 - 0.3 * np.tanh(lambdas)
    s = 0.5 * np.sin(lambdas)
    p = 0.2 * np.cos(lambdas)
    L = 0.5 * lambdas - 0.3 * np.log(np.cosh(lambdas))
    S = -0.5 * np.cos(lambdas)
    return Statistics(lambdas.reshape(-1), l, s, -0.2 * np.sin(lambdas) - s * p, L, S, p)


@pytest.fixture
def log_snr_schedule():
    """A schedule in float64 whose log SNR falls linearly.

    Interpolation of log SNR in t is then exact, so all errors are the solver's. JAX uses float64
    during the test.
    """
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


def test_smooth_statistics_solve_the_ode_with_the_order_of_the_sampler(log_snr_schedule):
    sampler = with_statistics(smooth_statistics(), 3, True)
    network = mixture_x0(log_snr_schedule, jnp.full((1, 1, 1, 1), MU, float), STD)
    denoise = make_denoiser(log_snr_schedule, network, "x0", None)
    xT = np.linspace(-2, 2, 8).reshape(-1, 1, 1, 1)

    def error(steps):
        t = np.interp(np.linspace(6, -6, steps + 1), np.linspace(-9, 9, 1000), np.arange(1000))
        rows = list(rows_of(grid_from_pairs(log_snr_schedule, t[:-1], t[1:])))
        x = xT
        state = sampler.init(jnp.asarray(xT))
        for i, row in enumerate(rows):
            x, state = step(sampler, KEYS, denoise, x, row, state)
            expected = gaussian_flow(rows[0], row, xT)
            # The first steps have fewer f: they are replaced by the solution.
            x = expected if i < 4 else x
        return np.max(np.abs(np.asarray(x) - expected))

    coarse = error(80)
    fine = error(160)
    assert fine < 0.02
    assert sampler.order == 4
    assert abs(np.log2(coarse / fine) - sampler.order) < 0.4


def test_each_number_of_an_image_has_its_own_statistics():
    exact = gaussian_statistics()
    other = exact._replace(p=np.zeros_like(exact.p))

    def side_by_side(table, other_table):
        if table.ndim < 4:
            return table
        return np.concatenate([table[:, :, :1], other_table[:, :, 1:]], 2)

    mixed = jax.tree.map(side_by_side, exact, other)
    made = [with_statistics(each, 3, True) for each in (mixed, exact, other)]
    x0, *expected = (walk(sampler, grid_of(8), GAUSSIAN) for sampler in made)
    assert np.max(np.abs(expected[0] - expected[1])) > 1e-4
    for i in range(2):
        np.testing.assert_allclose(x0[:, :, i], expected[i][:, :, i], atol=1e-5)


def test_statistics_of_another_image_shape_are_refused():
    wide = jax.tree.map(lambda table: np.repeat(table, 5, 1) if table.ndim == 4 else table, X0)
    with pytest.raises(ValueError, match=r"for images of shape \(5, 1, 1\), not \(1, 2, 1\)"):
        with_statistics(wide, 2, True).init(XT)


def test_the_error_for_a_missing_or_foreign_file_names_it(tmp_path):
    message = r"no\.npz does not exist: run python -m ddpm_jax.statistics"
    with pytest.raises(FileNotFoundError, match=message):
        dpm_solver_v3(statistics=str(tmp_path / "no.npz"))
    text = tmp_path / "text.npz"
    text.write_text("x")
    other = tmp_path / "other.npz"
    np.savez(other, images=[1])
    empty = tmp_path / "empty.npz"
    empty.touch()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(other.read_bytes()[:-30])
    for path in (text, other, empty, cut):
        with pytest.raises(ValueError, match=f"{path.name} holds no statistics"):
            load(path)
