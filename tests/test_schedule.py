"""The forward process and its grids against float64, Bayes' rule and the numbers of the papers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.schedule import (
    BETAS,
    Row,
    from_betas,
    linear,
    make_grid,
    posterior,
    q_posterior,
    q_sample,
    scaled_linear,
    sigmoid,
    spaced,
    squaredcos,
    zero_terminal_snr,
)

SMALL = np.linspace(0.05, 0.7, 12)
CASES = {name: betas() for name, betas in BETAS.items()} | {
    "small": SMALL,
    "one": np.array([0.995]),
    "zero_terminal": zero_terminal_snr(linear()),
}


def images(seed, count, *shape):
    return np.random.default_rng(seed).standard_normal((count, *(shape or (2, 2, 1)))).astype(np.float32)


@pytest.mark.parametrize("betas", CASES.values(), ids=CASES)
def test_tables_are_those_of_float64(betas):
    alpha_bar = np.cumprod(1 - betas)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha_bar / (1 - alpha_bar))
    schedule = from_betas(betas)
    assert schedule.timesteps == len(betas)
    wanted = {
        "beta": betas,
        "alpha_bar": alpha_bar,
        "sqrt_alpha_bar": np.sqrt(alpha_bar),
        "sqrt_one_minus_alpha_bar": np.sqrt(1 - alpha_bar),
        "log_snr": log_snr,
    }
    for name, table in wanted.items():
        assert getattr(schedule, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(schedule, name), table, rtol=1e-6, err_msg=name)


def test_sqrt_one_minus_alpha_bar_is_not_recomputed_in_float32():
    schedule = from_betas(linear())
    wanted = np.sqrt(1e-4)
    recomputed = np.sqrt(np.float32(1) - np.float32(schedule.alpha_bar[0]))
    assert abs(recomputed / wanted - 1) > 5e-5
    assert abs(float(schedule.sqrt_one_minus_alpha_bar[0]) / wanted - 1) < 1e-7


def test_alpha_bar_of_the_linear_schedule():
    alpha_bar = from_betas(linear()).alpha_bar[np.array([0, 500, 999])]
    np.testing.assert_allclose(alpha_bar, [0.9999, 0.0777967, 4.03583e-5], rtol=2e-6)


@pytest.mark.parametrize(
    ("betas", "snr", "sqrt_alpha_bar"),
    [
        (linear, 4.035993e-05, 0.006353),
        (squaredcos, 2.428735e-09, 4.928220e-05),
        (scaled_linear, 0.004682, 0.068265),
    ],
)
def test_terminal_snr_is_that_of_table_1_of_lin_et_al(betas, snr, sqrt_alpha_bar):
    schedule = from_betas(betas())
    np.testing.assert_allclose(schedule.snr(jnp.array(999)), snr, rtol=1e-4)
    np.testing.assert_allclose(schedule.sqrt_alpha_bar[-1], sqrt_alpha_bar, rtol=1e-4)


@pytest.mark.parametrize("T", [2, 1000])
def test_linear_betas_rise_by_equal_amounts(T):
    np.testing.assert_allclose(linear(T), [1e-4 + t / (T - 1) * (0.02 - 1e-4) for t in range(T)], rtol=1e-12)


@pytest.mark.parametrize("T", [2, 1000])
def test_scaled_linear_betas_have_roots_that_rise_by_equal_amounts(T):
    roots = [0.00085**0.5 + t / (T - 1) * (0.012**0.5 - 0.00085**0.5) for t in range(T)]
    np.testing.assert_allclose(np.sqrt(scaled_linear(T)), roots, rtol=1e-12)


@pytest.mark.parametrize("T", [20, 1000])
def test_squaredcos_has_the_alpha_bar_of_nichol_and_dhariwal_up_to_the_cap(T):
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - squaredcos(T))[:-1], f[1:-1] / f[0], rtol=1e-9)
    assert squaredcos(T)[-1] == squaredcos(T).max() == 0.999
    assert squaredcos(T, max_beta=0.5).max() == 0.5


def test_sigmoid_betas_follow_the_logistic_curve_from_minus_6_to_6():
    z = np.linspace(-6, 6, 1000)
    np.testing.assert_allclose(sigmoid(), 1e-4 + 0.0199 * 0.5 * (1 + np.tanh(z / 2)), rtol=1e-12)


@pytest.mark.parametrize("family", [linear, scaled_linear, sigmoid])
def test_families_take_their_ends(family):
    betas = family(500, beta_start=0.002, beta_end=0.03)
    assert len(betas) == 500
    np.testing.assert_allclose(betas[[0, -1]], [0.002, 0.03], rtol=0.04)


@pytest.mark.parametrize(
    "betas", [[], 0.1, [[0.1, 0.2]], [0.0, 0.9], [-0.1, 0.9], [0.5, 1.1], [1.0, 0.5], [0.5, np.nan]], ids=str
)
def test_invalid_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"numbers in \(0, 1\], with 1 only at the end"):
        from_betas(np.asarray(betas))


def test_a_schedule_that_never_reaches_noise_is_named():
    with pytest.warns(UserWarning, match=r"never reaches noise: alpha_bar ends at 0\.0818"):
        from_betas(linear(1000, 0.001, 0.004))


@pytest.mark.parametrize("betas", CASES.values(), ids=CASES)
def test_the_usual_schedules_reach_noise(betas):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_betas(betas)


@pytest.mark.parametrize("betas", [linear(), scaled_linear(), squaredcos(), SMALL], ids=len)
def test_zero_terminal_snr_ends_in_noise_and_keeps_the_start(betas):
    root = np.sqrt(np.cumprod(1 - betas))
    schedule = from_betas(zero_terminal_snr(betas))
    assert schedule.alpha_bar[-1] == 0
    assert schedule.sqrt_one_minus_alpha_bar[-1] == 1
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    np.testing.assert_allclose(schedule.alpha_bar[0], 1 - betas[0], rtol=1e-6)
    wanted = np.interp(root, [root[-1], root[0]], [0, root[0]])
    np.testing.assert_allclose(schedule.sqrt_alpha_bar, wanted, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(zero_terminal_snr(zero_terminal_snr(betas)), zero_terminal_snr(betas), rtol=1e-9)


def test_q_sample_is_eq_4():
    x0, eps = images(0, 12), images(1, 12)
    alpha_bar = np.cumprod(1 - SMALL)[:, None, None, None]
    xt = q_sample(from_betas(SMALL), jnp.asarray(x0), jnp.arange(12), jnp.asarray(eps))
    np.testing.assert_allclose(xt, np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [0, 250, 999])
def test_q_sample_has_the_mean_and_variance_of_eq_4(t):
    n = 64 * 256
    eps = jax.random.normal(jax.random.key(0), (64, 16, 16, 1))
    xt = q_sample(from_betas(linear()), jnp.full(eps.shape, 0.7), jnp.full(64, t), eps)
    alpha_bar = np.cumprod(1 - linear())[t]
    std = np.sqrt(1 - alpha_bar)
    assert abs(float(jnp.mean(xt)) - 0.7 * np.sqrt(alpha_bar)) < 5 * std / np.sqrt(n)
    assert abs(float(jnp.std(xt)) / std - 1) < 5 / np.sqrt(2 * n)


def transition(betas, t, t_next):
    """Factor and variance of q(x_t | x_next), one step at a time; t_next = -1 is clean data."""
    factor, variance = 1.0, 0.0
    for beta in betas[t_next + 1 : t + 1]:
        factor, variance = factor * np.sqrt(1 - beta), variance * (1 - beta) + beta
    return factor, variance


def bayes(betas, t, t_next, x0, xt):
    """Mean and variance of q(x_next | x_t, x_0), the product of the Gaussians q(x_t | x_next) and q(x_next | x_0)."""
    if t_next == -1:
        return x0, 0.0
    factor, noise = transition(betas, t, t_next)
    factor0, noise0 = transition(betas, t_next, -1)
    variance = 1 / (1 / noise0 + factor**2 / noise)
    return variance * (factor0 * x0 / noise0 + factor * xt / noise), variance


@pytest.mark.parametrize("betas", [SMALL, zero_terminal_snr(SMALL)], ids=["small", "zero_terminal"])
def test_q_posterior_is_bayes_rule_at_every_t(betas):
    x0, xt = images(0, 12), images(1, 12)
    mean, variance = q_posterior(from_betas(betas), jnp.asarray(x0), jnp.asarray(xt), jnp.arange(12))
    for t in range(12):
        wanted = bayes(betas, t, t - 1, x0[t], xt[t])
        np.testing.assert_allclose(mean[t], wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[t], wanted[1], rtol=1e-5)


@pytest.mark.parametrize(("t", "variance"), [(0, 0.0), (487, 0.00979), (999, 0.02)])
def test_q_posterior_variance_is_that_of_diffusers(t, variance):
    x = jnp.zeros((1, 1, 1, 1))
    assert abs(float(q_posterior(from_betas(linear()), x, x, jnp.array([t]))[1][0, 0, 0, 0]) - variance) < 1e-5


@pytest.mark.parametrize("betas", [SMALL, zero_terminal_snr(SMALL)], ids=["small", "zero_terminal"])
@pytest.mark.parametrize("times", [[11, 7, 3, 2, 0], [10, 1], [4], list(range(12))[::-1]], ids=len)
def test_every_row_of_a_grid_is_bayes_rule_for_its_stride(betas, times):
    x0, xt = images(0, 1), images(1, 1)
    grid = make_grid(from_betas(betas), np.array(times))
    nexts = [*times[1:], -1]
    assert grid.i.tolist() == list(range(len(times)))
    assert (grid.t.tolist(), grid.t_next.tolist()) == (times, nexts)
    for i, (t, t_next) in enumerate(zip(times, nexts, strict=True)):
        row = Row(*(table[i] for table in grid))
        mean, variance = posterior(row, jnp.asarray(x0), jnp.asarray(xt))
        wanted = bayes(betas, t, t_next, x0, xt)
        np.testing.assert_allclose(mean, wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, wanted[1], rtol=1e-5)
        np.testing.assert_allclose(grid.beta[i], transition(betas, t, t_next)[1], rtol=1e-6)


def test_the_next_of_the_last_row_is_clean_data():
    grid = make_grid(from_betas(linear()), np.array([999, 500, 3]))
    assert (grid.sqrt_alpha_bar_next[-1], grid.sqrt_one_minus_alpha_bar_next[-1]) == (1, 0)


def test_a_full_grid_holds_the_tables_of_the_schedule():
    schedule = from_betas(linear())
    grid = make_grid(schedule, np.arange(1000)[::-1])
    for table in ("beta", "sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"):
        np.testing.assert_allclose(getattr(grid, table)[::-1], getattr(schedule, table), rtol=2e-6, err_msg=table)


@pytest.mark.parametrize("betas", [linear(), zero_terminal_snr(linear())], ids=["linear", "zero_terminal"])
def test_whole_float_timesteps_agree_with_integers(betas):
    schedule, t = from_betas(betas), np.arange(1000)
    for whole, as_float in zip(schedule.at(jnp.asarray(t)), schedule.at(jnp.asarray(t, jnp.float32)), strict=True):
        np.testing.assert_allclose(as_float, whole, rtol=1e-5)
    grid, float_grid = make_grid(schedule, t[::-1]), make_grid(schedule, t[::-1].astype(float))
    assert (grid.t.dtype, float_grid.t.dtype) == (jnp.int32, jnp.float32)
    for whole, as_float in zip(grid, float_grid, strict=True):
        np.testing.assert_allclose(as_float, whole, rtol=1e-6)


def test_float_timesteps_between_two_interpolate_log_snr():
    schedule, t = from_betas(linear()), np.array([900.25, 500.5, 0.75])
    log_snr = np.log(np.cumprod(1 - linear()) / (1 - np.cumprod(1 - linear())))
    below = t.astype(int)
    wanted = log_snr[below] + (t - below) * (log_snr[below + 1] - log_snr[below])
    grid = make_grid(schedule, t)
    found = np.log(np.asarray(grid.sqrt_alpha_bar, float) ** 2 / np.asarray(grid.sqrt_one_minus_alpha_bar, float) ** 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(np.log(schedule.snr(jnp.asarray(t, jnp.float32))), wanted, atol=1e-5)


@pytest.mark.parametrize("times", [[], [3, 3], [2, 3], [12], [11.5], [-1], [3, -0.5], [np.nan], [np.nan, 3.0]], ids=str)
def test_timesteps_that_do_not_fall_within_the_schedule_are_refused(times):
    with pytest.raises(ValueError, match=r"timesteps must fall strictly within 0\.\.11"):
        make_grid(from_betas(SMALL), np.array(times))


@pytest.mark.parametrize("T", [20, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps_fall_within_the_schedule_for_every_number_of_steps(T, spacing):
    for steps in range(1, T + 1):
        t = spaced(T, steps, spacing)
        assert t.shape == (steps,)
        assert np.all(np.diff(t) < 0)
        assert t[-1] >= 0
        assert t[0] < T
        assert spacing == "leading" or t[0] == T - 1
        assert spacing == "trailing" or t[-1] == 0 or steps == 1
        even = {"trailing": T / steps, "linspace": (T - 1) / max(steps - 1, 1), "leading": T // steps}[spacing]
        np.testing.assert_allclose(t, t[0] - even * np.arange(steps), rtol=0, atol=0.5 + 1e-9)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_all_steps_are_all_timesteps(spacing):
    assert spaced(20, 20, spacing).tolist() == list(range(20))[::-1]


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("leading", [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        ("linspace", [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
        ("trailing", [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ],
)
def test_spacings_are_those_of_table_2_of_lin_et_al(spacing, times):
    assert (spaced(1000, 10, spacing)[::-1] + 1).tolist() == times


def test_leading_offset_moves_every_timestep():
    assert (spaced(1000, 50, "leading", 1) - spaced(1000, 50, "leading")).tolist() == [1] * 50


@pytest.mark.parametrize("steps", [-1, 0, 21])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's T = 20"):
        spaced(20, steps)


def test_a_schedule_passes_through_jit_and_vmap():
    schedule, t = from_betas(SMALL), jnp.arange(12).reshape(3, 4)
    plain = schedule.at(t)
    jitted = jax.jit(lambda schedule: schedule.at(t))
    mapped = jax.vmap(lambda schedule, t: schedule.at(t), (None, 0))
    for i in range(2):
        np.testing.assert_array_equal(jitted(schedule)[i], plain[i])
        np.testing.assert_array_equal(mapped(schedule, t)[i], plain[i])
    jitted(from_betas(zero_terminal_snr(SMALL)))
    assert jitted._cache_size() == 1
    assert jax.jit(lambda schedule: schedule.timesteps)(schedule) == 12
