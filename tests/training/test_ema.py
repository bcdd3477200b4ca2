"""Averages against their definitions: profiles by numerical integration, rebuilt averages against tracked ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import ema
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.step import init_state, make_train_step

TRACKS, WANTED, STEPS, EVERY = (0.05, 0.1), (0.03, 0.06, 0.075, 0.09, 0.13, 0.2), 2000, 100
NODES, WEIGHTS = np.polynomial.legendre.leggauss(500)


def integral(function, stop=1.0, start=0.0):
    """By Gauss and Legendre's rule in float64."""
    middle, half = (start + stop) / 2, (stop - start) / 2
    return half * np.sum(WEIGHTS * function(middle + half * NODES))


def profile(gamma, t):
    """tau^gamma over [0, t], normalised."""
    return lambda tau: np.where(tau <= t, tau**gamma, 0) / integral(lambda tau: tau**gamma, t)


@pytest.mark.parametrize("length", [0.002, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_profile_has_the_length_asked_for(length):
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


@pytest.mark.parametrize("length", TRACKS)
def test_the_recursion_gives_every_step_its_share_of_the_profile(length):
    """The weight of the parameters of step s is the profile's integral over (s - 1, s]."""
    gamma, t = ema.power_gamma(length), 40
    rates = np.asarray(
        jax.vmap(lambda t: ema.power_rate(gamma, t))(jnp.arange(1.0, t + 1)), np.float64
    )
    found = rates * np.append(np.cumprod((1 - rates)[:0:-1])[::-1], 1)
    wanted = [integral(profile(gamma, t), s, s - 1) for s in range(1, t + 1)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9)
    assert rates[0] == 1


def test_rates_keep_their_precision_late_in_training():
    for t in (2, 1000, 10**6, 10**7):
        found = float(ema.power_rate(6.94, jnp.float32(t)))
        np.testing.assert_allclose(found, -np.expm1(7.94 * np.log1p(-1 / t)), rtol=1e-5)
        np.testing.assert_allclose(ema.decay_rate(0.999999, False, jnp.float32(t)), 1e-6, rtol=1e-5)


def test_warmup_starts_with_short_averages():
    t = np.array([1, 2, 10, 79, 80, 81, 82, 1000])
    rates = jax.vmap(lambda t: ema.decay_rate(0.9, True, t))(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(
        1 - np.asarray(rates), np.minimum(0.9, (1 + t) / (10 + t)), rtol=1e-6
    )


def test_overlaps_are_integrals_of_products():
    """Over the shorter of the two intervals, where both profiles are smooth."""
    t, gamma = np.array([1.0, 1.0, 2.5, 4.0]), np.array([6.9, 0.5, 16.7, 3.0])
    found = ema.profile_inner_product(t[:, None], gamma[:, None], t, gamma)
    for i in range(4):
        for j in range(4):
            p, q = profile(gamma[i], t[i]), profile(gamma[j], t[j])
            wanted = integral(lambda tau, p=p, q=q: p(tau) * q(tau), min(t[i], t[j]))
            np.testing.assert_allclose(found[i, j], wanted, rtol=1e-5)


def stored(times):
    """The times and exponents of snapshots of both tracks."""
    return np.repeat(times, 2), np.tile([ema.power_gamma(length) for length in TRACKS], len(times))


def test_a_stored_average_is_rebuilt_from_itself_alone():
    t, gamma = stored([100, 200, 300])
    weights, residual = ema.solve_weights(t, gamma, 200, ema.power_gamma(0.1))
    np.testing.assert_allclose(weights, [0, 0, 0, 1, 0, 0], atol=1e-9)
    assert residual < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.075, 0.2])
def test_weights_are_the_least_squares_ones_among_those_that_add_up_to_one(length):
    t, gamma = stored([250, 500, 750, 1000])
    wanted = ema.power_gamma(length)
    weights, residual = ema.solve_weights(t, gamma, 1000, wanted)

    def distance(weights):
        """Between the profiles, interval by interval between snapshots, where all of them are smooth."""
        nodes = np.concatenate([start + 125 * (1 + NODES) for start in (0, 250, 500, 750)])
        goal = profile(wanted, 1000)(nodes)
        sums = sum(w * profile(g, s)(nodes) for w, s, g in zip(weights, t, gamma, strict=True))
        return np.sqrt(
            np.sum(np.tile(WEIGHTS, 4) * (goal - sums) ** 2) / np.sum(np.tile(WEIGHTS, 4) * goal**2)
        )

    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(distance(weights), residual, rtol=1e-5)
    for direction in np.random.default_rng(0).standard_normal((5, 8)):
        assert distance(weights + 1e-2 * (direction - direction.mean())) > residual


def rebuild(snapshots, t_wanted, length):
    """The average of `length` at `t_wanted` from {t: trees of both tracks} until then, and the residual."""
    times = [t for t in snapshots if t <= t_wanted]
    weights, residual = ema.solve_weights(*stored(times), t_wanted, ema.power_gamma(length))
    return ema.combine((tree for t in times for tree in snapshots[t]), weights), residual


@pytest.mark.parametrize("t_wanted", [STEPS, 1300])
@pytest.mark.parametrize("length", WANTED)
def test_rebuilt_averages_of_a_random_walk_are_within_the_bound_of_the_residual(length, t_wanted):
    """Tracked directly by the recursion in float64; |error| <= |difference of profiles| |walk - c| (Cauchy-Schwarz)."""
    path = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 50)), 0)
    averages, snapshots = {}, {}
    for t, params in enumerate(path[:t_wanted], 1):
        for one in (*TRACKS, length):
            beta = (1 - 1 / t) ** (ema.power_gamma(one) + 1)
            averages[one] = beta * averages.get(one, 0) + (1 - beta) * params
        if t % EVERY == 0:
            snapshots[t] = [{"w": averages[one]} for one in TRACKS]
    found, residual = rebuild(snapshots, t_wanted, length)
    error = np.abs(found["w"] - averages[length])
    gamma = ema.power_gamma(length)
    spread = np.sqrt(t_wanted) * path[:t_wanted].std(0)
    norm = np.sqrt(ema.profile_inner_product(t_wanted, gamma, t_wanted, gamma))
    assert (error <= residual * norm * spread + 1e-5).all()
    assert np.linalg.norm(error) < residual * np.linalg.norm(path[t_wanted - 1] - averages[length])


def test_rebuilt_averages_of_a_training_are_those_tracked_directly():
    """A regression whose parameters go on moving, in float32, by the training step with all the tracks at once."""

    def loss(params, keys, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return jnp.mean((batch["image"] @ params["w"] - 1 - noise) ** 2, -1)

    settings = Ema(power=(*TRACKS, *WANTED))
    tx = optax.sgd(0.02)
    step = make_train_step(loss, tx, settings)

    def one(state, key):
        keys = jax.random.split(key, 9)
        return step(state, {"image": jax.random.normal(keys[8], (8, 4)), "key": keys[:8]})[0], None

    @jax.jit
    def steps(state, keys):
        return jax.lax.scan(one, state, keys)[0]

    state, snapshots = init_state({"w": jnp.zeros((4, 3))}, tx, settings), {}
    for keys in jax.random.split(jax.random.key(0), (STEPS // EVERY, EVERY)):
        state = steps(state, keys)
        snapshots[int(state.step)] = [state.ema_params[f"power_{length}"] for length in TRACKS]
    for length in WANTED:
        found, residual = rebuild(snapshots, STEPS, length)
        tracked = np.asarray(state.ema_params[f"power_{length}"]["w"])
        moved = np.linalg.norm(state.params["w"] - tracked)
        assert moved > 0.05
        assert np.linalg.norm(found["w"] - tracked) < residual * moved + 1e-5


def test_a_parameter_that_never_moved_comes_back_exactly():
    snapshots = {t: [{"w": np.float32([1e3, -1.0])}] * 2 for t in (5, 10)}
    np.testing.assert_allclose(rebuild(snapshots, 10, 0.13)[0]["w"], [1e3, -1.0], rtol=1e-7)


def test_sums_are_made_in_float64_one_tree_at_a_time():
    trees = iter([{"w": np.float32([1.0])}, {"w": np.float32([1.0])}, {"w": np.float32([1e-3])}])
    total = ema.combine(trees, [1e6 + 0.1, -1e6, 1.0])["w"]
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, [0.101], rtol=1e-6)
    with pytest.raises(ValueError, match="shorter"):
        ema.combine([{"w": np.ones(1)}], [0.5, 0.5])


def test_more_snapshots_make_more_lengths_solvable():
    few, many = (
        ema.reachable_lengths(*stored(np.arange(1, n + 1) * 640 / n), 640)
        for n in (2, ema.SNAPSHOTS)
    )
    assert few == [0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11]
    assert many == [i / 100 for i in range(2, 28)]
    for length in (0.03, 0.2):
        residual = ema.solve_weights(*stored(np.arange(10, 650, 10)), 640, ema.power_gamma(length))[
            1
        ]
        assert residual < 0.003
