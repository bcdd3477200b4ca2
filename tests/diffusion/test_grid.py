"""Grids match Bayes' rule, float64 tables and the papers' numbers."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.diffusion.grid import is_noise_spacing, make_grid, spaced, spaced_by_noise
from ddpm_jax.diffusion.posterior import posterior, q_posterior
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, zero_terminal_snr

SMALL = np.linspace(0.05, 0.7, 12)


def images(seed, n):
    return np.random.default_rng(seed).standard_normal((n, 2, 2, 1)).astype(np.float32)


def transition(betas, t, t_next):
    """Factor and variance of q(x_t | x_next), one step at a time; t_next = -1 is clean data."""
    factor = 1.0
    variance = 0.0
    for beta in betas[t_next + 1 : t + 1]:
        factor = factor * np.sqrt(1 - beta)
        variance = variance * (1 - beta) + beta
    return factor, variance


def bayes_posterior(betas, t, t_next, x0, xt):
    """Mean and variance of q(x_next | x_t, x_0).

    It is proportional to the product of q(x_t | x_next) and q(x_next | x_0).
    """
    if t_next == -1:
        return x0, 0.0
    factor, noise = transition(betas, t, t_next)
    factor0, noise0 = transition(betas, t_next, -1)
    variance = 1 / (1 / noise0 + factor**2 / noise)
    return variance * (factor0 * x0 / noise0 + factor * xt / noise), variance


@pytest.mark.parametrize("betas", [SMALL, zero_terminal_snr(SMALL)], ids=["small", "zero_terminal"])
def test_q_posterior_matches_bayes_rule_at_every_t(betas):
    x0 = images(0, 12)
    xt = images(1, 12)
    t = jnp.arange(12)
    mean, variance = q_posterior(from_betas(betas), jnp.asarray(x0), jnp.asarray(xt), t)
    for i in range(12):
        expected_mean, expected_variance = bayes_posterior(betas, i, i - 1, x0[i], xt[i])
        np.testing.assert_allclose(mean[i], expected_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[i], expected_variance, rtol=1e-5)


def test_a_step_between_timesteps_needs_whole_ones(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x = jnp.zeros((1, 1, 1, 1))
    with pytest.raises(ValueError, match="needs integers for t, not float32: cast it"):
        q_posterior(from_betas(SMALL), x, x, jnp.array([1.0]))


@pytest.mark.parametrize(("t", "expected"), [(0, 0.0), (487, 0.00979), (999, 0.02)])
def test_q_posterior_variance_matches_diffusers(t, expected):
    x = jnp.zeros((1, 1, 1, 1))
    _, variance = q_posterior(from_betas(linear_betas()), x, x, jnp.array([t]))
    assert abs(float(variance[0, 0, 0, 0]) - expected) < 1e-5


@pytest.mark.parametrize("betas", [SMALL, zero_terminal_snr(SMALL)], ids=["small", "zero_terminal"])
@pytest.mark.parametrize(
    "timesteps", [[11, 7, 3, 2, 0], [10, 1], [4], list(range(12))[::-1]], ids=len
)
def test_posterior_of_every_grid_row_matches_bayes_rule_for_its_stride(betas, timesteps):
    x0 = images(0, 1)
    xt = images(1, 1)
    grid = make_grid(from_betas(betas), np.array(timesteps))
    next_timesteps = [*timesteps[1:], -1]
    assert grid.i.tolist() == list(range(len(timesteps)))
    assert (grid.t.tolist(), grid.t_next.tolist()) == (timesteps, next_timesteps)
    for i, (t, t_next) in enumerate(zip(timesteps, next_timesteps, strict=True)):
        mean, variance = posterior(grid.row(i), jnp.asarray(x0), jnp.asarray(xt))
        expected_mean, expected_variance = bayes_posterior(betas, t, t_next, x0, xt)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance, expected_variance, rtol=1e-5)
        np.testing.assert_allclose(grid.beta[i], transition(betas, t, t_next)[1], rtol=1e-6)


def test_last_row_of_a_grid_ends_in_clean_data():
    grid = make_grid(from_betas(linear_betas()), np.array([999, 500, 3]))
    assert (grid.sqrt_alpha_bar_next[-1], grid.sqrt_one_minus_alpha_bar_next[-1]) == (1, 0)


def test_grid_of_all_timesteps_matches_the_tables_of_the_schedule():
    schedule = from_betas(linear_betas())
    grid = make_grid(schedule, np.arange(1000)[::-1])
    for table in ("beta", "sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"):
        np.testing.assert_allclose(
            getattr(grid, table)[::-1], getattr(schedule, table), rtol=2e-6, err_msg=table
        )


@pytest.mark.parametrize(
    "betas", [linear_betas(), zero_terminal_snr(linear_betas())], ids=["linear", "zero_terminal"]
)
def test_whole_float_timesteps_match_integer_timesteps(betas):
    schedule = from_betas(betas)
    t = np.arange(1000)
    by_integer = schedule.signal_and_noise(jnp.asarray(t))
    by_float = schedule.signal_and_noise(jnp.asarray(t, jnp.float32))
    for integer_level, float_level in zip(by_integer, by_float, strict=True):
        np.testing.assert_allclose(float_level, integer_level, rtol=1e-5)
    grid = make_grid(schedule, t[::-1])
    float_grid = make_grid(schedule, t[::-1].astype(float))
    assert (grid.t.dtype, float_grid.t.dtype) == (jnp.int32, jnp.float32)
    for integer_table, float_table in zip(grid[:-1], float_grid[:-1], strict=True):
        np.testing.assert_allclose(float_table, integer_table, rtol=1e-6)


def test_float_timesteps_interpolate_log_snr():
    schedule = from_betas(linear_betas())
    t = np.array([900.25, 500.5, 0.75])
    alpha_bar = np.cumprod(1 - linear_betas())
    log_snr = np.log(alpha_bar / (1 - alpha_bar))
    below = t.astype(int)
    expected = log_snr[below] + (t - below) * (log_snr[below + 1] - log_snr[below])
    grid = make_grid(schedule, t)
    signal = np.asarray(grid.sqrt_alpha_bar, float)
    noise = np.asarray(grid.sqrt_one_minus_alpha_bar, float)
    np.testing.assert_allclose(np.log(signal**2 / noise**2), expected, atol=1e-6)
    snr = schedule.snr(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(np.log(snr), expected, atol=1e-5)


@pytest.mark.parametrize(
    "timesteps",
    [[], [3, 3], [2, 3], [12], [11.5], [-1], [3, -0.5], [np.nan], [np.nan, 3.0]],
    ids=str,
)
def test_timesteps_that_do_not_decrease_within_the_schedule_are_refused(timesteps):
    with pytest.raises(ValueError, match=r"timesteps must decrease strictly within 0\.\.11"):
        make_grid(from_betas(SMALL), np.array(timesteps))


def test_a_float_end_of_whole_timesteps_keeps_its_value():
    schedule = from_betas(SMALL)
    grid = make_grid(schedule, np.array([9, 5]), 0.5)
    np.testing.assert_array_equal(grid.t, [9, 5])
    np.testing.assert_array_equal(grid.t_next, [5, 0.5])
    same = make_grid(schedule, [9.0, 5.0], 0.5)
    np.testing.assert_array_equal(grid.sqrt_alpha_bar_next, same.sqrt_alpha_bar_next)


def test_unsigned_timesteps_are_integers():
    unsigned, signed = (
        make_grid(from_betas(SMALL), np.array([9, 5, 0], dtype)) for dtype in (np.uint8, np.int32)
    )
    for ours, expected in zip(jax.tree.leaves(unsigned), jax.tree.leaves(signed), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("T", [20, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps_decrease_evenly_for_every_number_of_steps(T, spacing):
    for steps in range(1, T + 1):
        t = spaced(T, steps, spacing)
        assert t.shape == (steps,)
        assert np.all(np.diff(t) < 0)
        assert t[-1] >= 0
        assert t[0] < T
        assert spacing == "leading" or t[0] == T - 1
        assert spacing == "trailing" or t[-1] == 0 or steps == 1
        stride = {
            "trailing": T / steps,
            "linspace": (T - 1) / max(steps - 1, 1),
            "leading": T // steps,
        }[spacing]
        np.testing.assert_allclose(t, t[0] - stride * np.arange(steps), rtol=0, atol=0.5 + 1e-9)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_with_as_many_steps_as_timesteps_is_every_timestep(spacing):
    assert spaced(20, 20, spacing).tolist() == list(range(20))[::-1]


def test_a_grid_ends_at_clean_data_or_a_timestep_below_its_last():
    schedule = from_betas(linear_betas())
    cases = [(end, "A grid ends at clean data") for end in (700, -2, 1000)]
    assert_refused(lambda end: make_grid(schedule, np.array([900, 500]), end), cases)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_spacings_by_noise_begin_and_end_at_whole_timesteps(spacing):
    schedule = from_betas(linear_betas())
    for steps in range(2, 60):
        t = spaced_by_noise(schedule, steps, spacing)
        assert (t[0], t[-1]) == (999, 0)
    assert spaced_by_noise(schedule, 1, spacing).tolist() == [999]


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_spacings_by_noise_are_equal_steps_of_their_level(spacing):
    """Eq. 5, Karras et al. 2022, with rho = 7, or log SNR."""
    schedule = from_betas(linear_betas())
    t = spaced_by_noise(schedule, 9, spacing)
    log_snr = np.interp(t, np.arange(1000), np.asarray(schedule.log_snr, float))
    levels = log_snr if spacing == "log_snr" else np.exp(-log_snr / 2) ** (1 / 7)  # sigma^(1/rho)
    np.testing.assert_allclose(np.diff(levels), (levels[-1] - levels[0]) / 8, rtol=1e-3)


@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [
        ("leading", [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]),
        ("linspace", [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]),
        ("trailing", [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]),
    ],
)
def test_spacings_match_table_2_of_lin_et_al(spacing, timesteps):
    assert (spaced(1000, 10, spacing)[::-1] + 1).tolist() == timesteps


def test_a_spacing_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match=r"karras is by noise level: use spaced_by_noise or"):
        spaced(1000, 10, "karras")
    with pytest.raises(ValueError, match="leading is not by noise level: use spaced or"):
        spaced_by_noise(from_betas(linear_betas()), 10, "leading")
    with pytest.raises(
        ValueError,
        match="Unknown spacing 'equal': choose one of trailing, leading, linspace, karras",
    ):
        is_noise_spacing("equal")


@pytest.mark.parametrize("steps", [-1, 0, 21])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's T = 20"):
        spaced(20, steps)
