"""Averages against numerical integrals of their profiles; rebuilt averages against tracked ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import ema
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.step import init_state, make_train_step

TRACKED_LENGTHS = (0.05, 0.1)
REBUILT_LENGTHS = (0.03, 0.06, 0.075, 0.09, 0.13, 0.2)
STEPS = 2000
SNAPSHOT_EVERY = 100
NODES, WEIGHTS = np.polynomial.legendre.leggauss(500)


def integral(function, stop=1.0, start=0.0):
    """Integrate by Gauss-Legendre quadrature in float64."""
    middle = (start + stop) / 2
    half = (stop - start) / 2
    return half * np.sum(WEIGHTS * function(middle + half * NODES))


def profile(gamma, t):
    """tau^gamma over [0, t], normalised."""
    return lambda tau: np.where(tau <= t, tau**gamma, 0) / integral(lambda tau: tau**gamma, t)


@pytest.mark.parametrize("length", [0.002, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_profile_has_the_length_of_its_exponent(length):
    t = 3.0
    p = profile(ema.power_gamma(length), t)
    mean = integral(lambda tau: tau * p(tau), t)
    variance = integral(lambda tau: (tau - mean) ** 2 * p(tau), t)
    np.testing.assert_allclose(np.sqrt(variance), length * t, rtol=1e-5)


def test_the_longest_average_is_the_mean_of_all_steps():
    assert ema.power_gamma(ema.MAX_LENGTH) < 1e-9
    np.testing.assert_allclose(ema.MAX_LENGTH, np.std(np.linspace(0, 1, 100001)), rtol=1e-4)
    for length in (0.0, -0.1, 0.2887, 0.9999, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"must be above 0 and at most 0\.2887, not"):
            ema.power_gamma(length)


@pytest.mark.parametrize("length", TRACKED_LENGTHS)
def test_the_recursion_weighs_every_step_by_its_part_of_the_profile(length):
    """The weight of the parameters of step s is the profile's integral over (s - 1, s]."""
    gamma = ema.power_gamma(length)
    t = 40
    rates = jax.vmap(lambda t: ema.power_rate(gamma, t))(jnp.arange(1.0, t + 1))
    rates = np.asarray(rates, np.float64)
    weights = rates * np.append(np.cumprod((1 - rates)[:0:-1])[::-1], 1)
    expected = [integral(profile(gamma, t), s, s - 1) for s in range(1, t + 1)]
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-9)
    assert rates[0] == 1


def test_rates_keep_their_precision_late_in_training():
    for t in (2, 1000, 10**6, 10**7):
        rate = float(ema.power_rate(6.94, jnp.float32(t)))
        np.testing.assert_allclose(rate, -np.expm1(7.94 * np.log1p(-1 / t)), rtol=1e-5)
        np.testing.assert_allclose(ema.decay_rate(0.999999, False, jnp.float32(t)), 1e-6, rtol=1e-5)


def test_warmup_starts_with_short_averages():
    t = np.array([1, 2, 10, 79, 80, 81, 82, 1000])
    rates = jax.vmap(lambda t: ema.decay_rate(0.9, True, t))(jnp.asarray(t, jnp.float32))
    expected = np.minimum(0.9, (1 + t) / (10 + t))
    np.testing.assert_allclose(1 - np.asarray(rates), expected, rtol=1e-6)


def test_profile_inner_products_are_integrals_of_products():
    """Integrate over the shorter of the two intervals, where both profiles are smooth."""
    t = np.array([1.0, 1.0, 2.5, 4.0])
    gamma = np.array([6.9, 0.5, 16.7, 3.0])
    products = ema.profile_inner_product(t[:, None], gamma[:, None], t, gamma)
    for i in range(4):
        for j in range(4):
            p = profile(gamma[i], t[i])
            q = profile(gamma[j], t[j])
            expected = integral(lambda tau, p=p, q=q: p(tau) * q(tau), min(t[i], t[j]))
            np.testing.assert_allclose(products[i, j], expected, rtol=1e-5)


def snapshot_profiles(times):
    """The (t, gamma) of snapshots of both tracked averages."""
    gammas = [ema.power_gamma(length) for length in TRACKED_LENGTHS]
    return np.repeat(times, 2), np.tile(gammas, len(times))


def test_a_stored_average_is_rebuilt_from_itself_alone():
    t, gamma = snapshot_profiles([100, 200, 300])
    weights, residual = ema.solve_weights(t, gamma, 200, ema.power_gamma(0.1))
    np.testing.assert_allclose(weights, [0, 0, 0, 1, 0, 0], atol=1e-9)
    assert residual < 1e-6


def relative_distance(weights, t, gamma, length):
    """The residual of weights of averages at t, by quadrature between evenly spaced snapshots.

    Between snapshots all profiles are smooth. The target is the last one.
    """
    end = max(t)
    gap = end / len(set(t))
    starts = gap * np.arange(len(set(t)))
    nodes = np.concatenate([start + gap / 2 * (1 + NODES) for start in starts])
    node_weights = np.tile(WEIGHTS, len(starts))
    target = profile(ema.power_gamma(length), end)(nodes)
    rebuilt = sum(w * profile(g, s)(nodes) for w, s, g in zip(weights, t, gamma, strict=True))
    squared_error = np.sum(node_weights * (target - rebuilt) ** 2)
    return np.sqrt(squared_error / np.sum(node_weights * target**2))


@pytest.mark.parametrize("length", [0.03, 0.075, 0.2])
def test_weights_add_up_to_one_and_minimize_the_residual(length):
    t, gamma = snapshot_profiles([250, 500, 750, 1000])
    weights, residual = ema.solve_weights(t, gamma, 1000, ema.power_gamma(length))

    def distance(weights):
        return relative_distance(weights, t, gamma, length)

    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(distance(weights), residual, rtol=1e-5)
    for direction in np.random.default_rng(0).standard_normal((5, 8)):
        assert distance(weights + 1e-2 * (direction - direction.mean())) > residual


def rebuild(snapshots, target_t, length):
    """Rebuild the average of `length` at `target_t`, and return it with the residual.

    `snapshots` are {t: trees of both tracked averages}; later ones than `target_t` are not used.
    """
    times = [t for t in snapshots if t <= target_t]
    t, gamma = snapshot_profiles(times)
    weights, residual = ema.solve_weights(t, gamma, target_t, ema.power_gamma(length))
    return ema.combine((tree for t in times for tree in snapshots[t]), weights), residual


@functools.cache
def random_walk():
    """A walk of 50 numbers, and {t: {length: average}} tracked by the recursion in float64."""
    path = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 50)), 0)  # (steps, 50)
    lengths = (*TRACKED_LENGTHS, *REBUILT_LENGTHS)
    exponents = np.array([[ema.power_gamma(length) + 1] for length in lengths])
    averages = np.zeros((len(lengths), 50))
    tracked = {}
    for t, params in enumerate(path, 1):
        beta = (1 - 1 / t) ** exponents
        averages = beta * averages + (1 - beta) * params
        if t % SNAPSHOT_EVERY == 0:
            tracked[t] = dict(zip(lengths, averages, strict=True))
    return path, tracked


@pytest.mark.parametrize("target_t", [STEPS, 1300])
@pytest.mark.parametrize("length", REBUILT_LENGTHS)
def test_the_residual_bounds_the_error_of_averages_of_a_random_walk(length, target_t):
    """|error| <= |difference of profiles| |walk - c| (Cauchy-Schwarz)."""
    path, tracked = random_walk()
    snapshots = {
        t: [{"w": averages[tracked_length]} for tracked_length in TRACKED_LENGTHS]
        for t, averages in tracked.items()
    }
    average = tracked[target_t][length]
    rebuilt, residual = rebuild(snapshots, target_t, length)
    error = np.abs(rebuilt["w"] - average)
    gamma = ema.power_gamma(length)
    spread = np.sqrt(target_t) * path[:target_t].std(0)
    norm = np.sqrt(ema.profile_inner_product(target_t, gamma, target_t, gamma))
    assert (error <= residual * norm * spread + 1e-5).all()
    assert np.linalg.norm(error) < residual * np.linalg.norm(path[target_t - 1] - average)


def test_rebuilt_averages_of_a_training_are_those_tracked_directly():
    """The parameters of a regression, which keep moving, with all averages tracked in float32."""

    def loss(params, keys, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return jnp.mean((batch["image"] @ params["w"] - 1 - noise) ** 2, -1)

    settings = Ema(power=(*TRACKED_LENGTHS, *REBUILT_LENGTHS))
    tx = optax.sgd(0.02)
    step = make_train_step(loss, tx, settings)

    def step_of_key(state, key):
        keys = jax.random.split(key, 9)
        batch = {"image": jax.random.normal(keys[8], (8, 4)), "key": keys[:8]}
        state, _ = step(state, batch)
        return state, None

    @jax.jit
    def steps(state, keys):
        return jax.lax.scan(step_of_key, state, keys)[0]

    state = init_state({"w": jnp.zeros((4, 3))}, tx, settings)
    snapshots = {}
    for keys in jax.random.split(jax.random.key(0), (STEPS // SNAPSHOT_EVERY, SNAPSHOT_EVERY)):
        state = steps(state, keys)
        averages = [state.ema_params[f"power_{length}"] for length in TRACKED_LENGTHS]
        snapshots[int(state.step)] = averages
    for length in REBUILT_LENGTHS:
        rebuilt, residual = rebuild(snapshots, STEPS, length)
        tracked = np.asarray(state.ema_params[f"power_{length}"]["w"])
        distance = np.linalg.norm(state.params["w"] - tracked)
        assert distance > 0.05
        assert np.linalg.norm(rebuilt["w"] - tracked) < residual * distance + 1e-5


def test_a_parameter_that_never_moved_is_rebuilt_exactly():
    snapshots = {t: [{"w": np.float32([1e3, -1.0])}] * 2 for t in (5, 10)}
    np.testing.assert_allclose(rebuild(snapshots, 10, 0.13)[0]["w"], [1e3, -1.0], rtol=1e-7)


def test_combine_sums_in_float64_and_takes_an_iterator():
    trees = iter([{"w": np.float32([1.0])}, {"w": np.float32([1.0])}, {"w": np.float32([1e-3])}])
    total = ema.combine(trees, [1e6 + 0.1, -1e6, 1.0])["w"]
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, [0.101], rtol=1e-6)
    with pytest.raises(ValueError, match="shorter"):
        ema.combine([{"w": np.ones(1)}], [0.5, 0.5])


def test_more_snapshots_make_more_lengths_reachable():
    def lengths(n, checked):
        t, gamma = snapshot_profiles(np.arange(1, n + 1) * 640 / n)
        reachable = ema.reachable_lengths(t, gamma, 640)
        for length in checked:
            weights, _ = ema.solve_weights(t, gamma, 640, ema.power_gamma(length))
            is_near = relative_distance(weights, t, gamma, length) <= ema.MAX_RESIDUAL
            assert (length in reachable) == is_near, (n, length)
        return reachable

    few = lengths(2, np.arange(1, 29) / 100)
    assert 0 < len(few) < len(lengths(ema.SNAPSHOTS, [0.01, 0.02, 0.27, 0.28]))
    t, gamma = snapshot_profiles(np.arange(10, 650, 10))
    for length in (0.03, 0.2):
        _, residual = ema.solve_weights(t, gamma, 640, ema.power_gamma(length))
        assert residual < 0.003
