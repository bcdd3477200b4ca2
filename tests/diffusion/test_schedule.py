"""The forward process matches float64, Bayes' rule and the papers' numbers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import EXPLICIT, ROWS, split

from ddpm_jax.diffusion.schedule import (
    BETAS,
    edm_betas,
    flow_betas,
    from_betas,
    linear_betas,
    q_sample,
    scaled_linear_betas,
    sigmoid_betas,
    squaredcos_betas,
    zero_terminal_snr,
)

SMALL = np.linspace(0.05, 0.7, 12)
CASES = {name: betas() for name, betas in BETAS.items()} | {
    "small": SMALL,
    "one": np.array([0.995]),
    "zero_terminal": zero_terminal_snr(linear_betas()),
}


def images(seed, n):
    return np.random.default_rng(seed).standard_normal((n, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("betas", CASES.values(), ids=CASES)
def test_tables_match_float64(betas):
    alpha_bar = np.cumprod(1 - betas)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha_bar / (1 - alpha_bar))
    schedule = from_betas(betas)
    assert schedule.timesteps == len(betas)
    tables = {
        "beta": betas,
        "alpha_bar": alpha_bar,
        "sqrt_alpha_bar": np.sqrt(alpha_bar),
        "sqrt_one_minus_alpha_bar": np.sqrt(1 - alpha_bar),
        "log_snr": log_snr,
    }
    for name, expected in tables.items():
        table = getattr(schedule, name)
        assert table.dtype == jnp.float32
        np.testing.assert_allclose(table, expected, rtol=1e-6, atol=1e-12, err_msg=name)


def test_sqrt_one_minus_alpha_bar_is_not_recomputed_in_float32():
    schedule = from_betas(linear_betas())
    expected = np.sqrt(1e-4)
    recomputed = np.sqrt(np.float32(1) - np.float32(schedule.alpha_bar[0]))
    assert abs(recomputed / expected - 1) > 5e-5
    assert abs(float(schedule.sqrt_one_minus_alpha_bar[0]) / expected - 1) < 1e-7


def test_alpha_bar_of_the_linear_schedule_matches_its_known_values():
    alpha_bar = from_betas(linear_betas()).alpha_bar[np.array([0, 500, 999])]
    np.testing.assert_allclose(alpha_bar, [0.9999, 0.0777967, 4.03583e-5], rtol=2e-6)


@pytest.mark.parametrize(
    ("betas", "snr", "sqrt_alpha_bar"),
    [
        (linear_betas, 4.035993e-05, 0.006353),
        (squaredcos_betas, 2.428735e-09, 4.928220e-05),
        (scaled_linear_betas, 0.004682, 0.068265),
    ],
)
def test_terminal_snr_matches_table_1_of_lin_et_al(betas, snr, sqrt_alpha_bar):
    schedule = from_betas(betas())
    np.testing.assert_allclose(schedule.snr(jnp.array(999)), snr, rtol=1e-4)
    np.testing.assert_allclose(schedule.sqrt_alpha_bar[-1], sqrt_alpha_bar, rtol=1e-4)


@pytest.mark.parametrize("T", [2, 1000])
def test_linear_betas_rise_by_equal_amounts(T):
    expected = [1e-4 + t / (T - 1) * (0.02 - 1e-4) for t in range(T)]
    np.testing.assert_allclose(linear_betas(T), expected, rtol=1e-12)


@pytest.mark.parametrize("T", [2, 1000])
def test_square_roots_of_scaled_linear_betas_rise_by_equal_amounts(T):
    roots = [0.00085**0.5 + t / (T - 1) * (0.012**0.5 - 0.00085**0.5) for t in range(T)]
    np.testing.assert_allclose(np.sqrt(scaled_linear_betas(T)), roots, rtol=1e-12)


@pytest.mark.parametrize("T", [20, 1000])
def test_squaredcos_betas_match_nichol_and_dhariwal_up_to_the_maximum(T):
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - squaredcos_betas(T))[:-1], f[1:-1] / f[0], rtol=1e-9)
    assert squaredcos_betas(T)[-1] == squaredcos_betas(T).max() == 0.999
    assert squaredcos_betas(T, max_beta=0.5).max() == 0.5


def test_sigmoid_betas_follow_the_logistic_curve_from_minus_6_to_6():
    z = np.linspace(-6, 6, 1000)
    expected = 1e-4 + 0.0199 * 0.5 * (1 + np.tanh(z / 2))
    np.testing.assert_allclose(sigmoid_betas(), expected, rtol=1e-12)


def test_edm_has_every_noise_level_from_0_002_to_80_at_a_float_t():
    """Interpolation is exact, as log sigma is linear in t (Table 1, Karras et al. 2022)."""
    schedule = from_betas(edm_betas())
    t = jnp.asarray(np.random.default_rng(0).uniform(0, 999, 200), jnp.float32)
    sigma = np.exp(np.log(0.002) + np.asarray(t, float) / 999 * np.log(80 / 0.002))
    signal, noise = schedule.signal_and_noise(t)
    np.testing.assert_allclose(signal, 1 / np.sqrt(1 + sigma**2), rtol=2e-6)
    np.testing.assert_allclose(noise, sigma / np.sqrt(1 + sigma**2), rtol=2e-6)
    inverse = schedule.timestep_at(jnp.asarray(-2 * np.log(sigma), jnp.float32))
    np.testing.assert_allclose(inverse, t, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(schedule.timestep_at(jnp.array([20.0, -20.0])), [0, 999])
    other_ends = from_betas(edm_betas(7, 0.01, 50.0))
    np.testing.assert_allclose(other_ends.snr(jnp.array([0, 6])), [1e4, 1 / 2500], rtol=1e-5)


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_the_noise_fraction_of_flow_rises_evenly_to_pure_noise(T):
    schedule = from_betas(flow_betas(T))
    total = schedule.sqrt_alpha_bar + schedule.sqrt_one_minus_alpha_bar
    fraction = schedule.sqrt_one_minus_alpha_bar / total
    np.testing.assert_allclose(fraction, np.arange(1, T + 1) / T, rtol=2e-6)
    assert schedule.alpha_bar[-1] == 0


@pytest.mark.parametrize("family", [linear_betas, scaled_linear_betas, sigmoid_betas])
def test_beta_start_and_beta_end_set_the_ends(family):
    betas = family(500, beta_start=0.002, beta_end=0.03)
    assert len(betas) == 500
    np.testing.assert_allclose(betas[[0, -1]], [0.002, 0.03], rtol=0.04)


@pytest.mark.parametrize(
    "betas",
    [[], 0.1, [[0.1, 0.2]], [0.0, 0.9], [-0.1, 0.9], [0.5, 1.1], [1.0, 0.5], [0.5, np.nan]],
    ids=str,
)
def test_invalid_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"numbers in \(0, 1\], with 1 only at the end"):
        from_betas(np.asarray(betas))


def test_a_schedule_without_signal_before_its_end_is_refused():
    """Both its signal and its square root are 0 there, and their quotient would be NaN."""
    with pytest.raises(ValueError, match=r"no signal from t = 874 on .*: lower the betas or T"):
        from_betas(linear_betas(1000, 1e-4, 0.4))


def test_a_schedule_that_never_reaches_noise_warns():
    with pytest.warns(UserWarning, match=r"never reaches noise: alpha_bar ends at 0\.0818"):
        from_betas(linear_betas(1000, 0.001, 0.004))


@pytest.mark.parametrize("betas", CASES.values(), ids=CASES)
def test_the_default_schedules_reach_noise(betas):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_betas(betas)


@pytest.mark.parametrize(
    "betas", [linear_betas(), scaled_linear_betas(), squaredcos_betas(), SMALL], ids=len
)
def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_beta(betas):
    rescaled = zero_terminal_snr(betas)
    schedule = from_betas(rescaled)
    assert schedule.alpha_bar[-1] == 0
    assert schedule.sqrt_one_minus_alpha_bar[-1] == 1
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    np.testing.assert_allclose(schedule.alpha_bar[0], 1 - betas[0], rtol=1e-6)
    root = np.sqrt(np.cumprod(1 - betas))
    expected = np.interp(root, [root[-1], root[0]], [0, root[0]])
    np.testing.assert_allclose(schedule.sqrt_alpha_bar, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(zero_terminal_snr(rescaled), rescaled, rtol=1e-9)


def test_q_sample_matches_eq_4():
    x0 = images(0, 12)
    eps = images(1, 12)
    alpha_bar = np.cumprod(1 - SMALL)[:, None, None, None]
    xt = q_sample(from_betas(SMALL), jnp.asarray(x0), jnp.arange(12), jnp.asarray(eps))
    expected = np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps
    np.testing.assert_allclose(xt, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [0, 250, 999])
def test_q_sample_has_the_mean_and_variance_of_eq_4(t):
    n = 64 * 256
    eps = jax.random.normal(jax.random.key(0), (64, 16, 16, 1))
    xt = q_sample(from_betas(linear_betas()), jnp.full(eps.shape, 0.7), jnp.full(64, t), eps)
    alpha_bar = np.cumprod(1 - linear_betas())[t]
    std = np.sqrt(1 - alpha_bar)
    assert abs(float(jnp.mean(xt)) - 0.7 * np.sqrt(alpha_bar)) < 5 * std / np.sqrt(n)
    assert abs(float(jnp.std(xt)) / std - 1) < 5 / np.sqrt(2 * n)


def test_the_derivative_in_t_is_the_slope_at_whole_t_too():
    schedule = from_betas(linear_betas())

    def slope(t):
        return jax.jvp(lambda t: jnp.log(schedule.snr(t)), (t,), (jnp.ones_like(t),))[1]

    np.testing.assert_allclose(slope(jnp.array([500.0])), slope(jnp.array([500.5])), rtol=1e-4)


def test_a_schedule_passes_through_jit_and_vmap():
    schedule = from_betas(SMALL)
    t = jnp.arange(12).reshape(3, 4)
    plain = schedule.signal_and_noise(t)
    jitted = jax.jit(lambda schedule: schedule.signal_and_noise(t))
    mapped = jax.vmap(lambda schedule, t: schedule.signal_and_noise(t), (None, 0))
    for i in range(2):
        np.testing.assert_array_equal(jitted(schedule)[i], plain[i])
        np.testing.assert_array_equal(mapped(schedule, t)[i], plain[i])
    jitted(from_betas(zero_terminal_snr(SMALL)))
    assert jitted._cache_size() == 1
    assert jax.jit(lambda schedule: schedule.timesteps)(schedule) == 12


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_noise_levels_keep_the_explicit_sharding_of_t(dtype):
    schedule = from_betas(SMALL)
    t = jnp.asarray([2, 9], dtype) + jnp.asarray(0.25, jnp.float32).astype(dtype)
    x0 = jnp.asarray(images(0, 2))
    eps = jnp.asarray(images(1, 2))
    for noise in (q_sample, jax.jit(q_sample)):
        xt = noise(schedule, *split(EXPLICIT, (x0, t, eps)))
        assert xt.sharding.spec[0] == "data"
        np.testing.assert_allclose(xt, noise(schedule, x0, t, eps), rtol=1e-6)
    log_snr = jnp.array([3.0, -3.0])
    inverse = schedule.timestep_at(split(EXPLICIT, log_snr))
    assert inverse.sharding.spec == ROWS
    np.testing.assert_array_equal(inverse, schedule.timestep_at(log_snr))


@pytest.mark.parametrize("betas", [flow_betas(9), zero_terminal_snr(SMALL)], ids=len)
def test_pure_noise_is_at_the_last_timestep(betas):
    schedule = from_betas(betas)
    with jax.debug_nans(True):
        t = schedule.timestep_at(schedule.log_snr)
    np.testing.assert_array_equal(t, np.arange(schedule.timesteps))


@pytest.mark.parametrize("betas", [linear_betas(), SMALL], ids=len)
def test_float_t_and_log_snr_are_interpolated_as_by_numpy(betas):
    schedule = from_betas(betas)
    last = schedule.timesteps - 1
    t = np.random.default_rng(0).uniform(0, last, 200).astype(np.float32)
    log_snr = np.interp(t, np.arange(last + 1), schedule.log_snr)
    signal, noise = schedule.signal_and_noise(jnp.asarray(t))
    np.testing.assert_allclose(2 * np.log(signal / noise), log_snr, rtol=1e-4, atol=1e-4)
    beyond = np.concatenate([log_snr, [schedule.log_snr[0] + 1, schedule.log_snr[-1] - 1]])
    inverse = schedule.timestep_at(jnp.asarray(beyond, jnp.float32))
    np.testing.assert_allclose(inverse, [*t, 0, last], rtol=1e-5, atol=1e-2)
