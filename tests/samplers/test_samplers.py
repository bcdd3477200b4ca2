"""Claims about every sampler, found by its module. Each is compiled twice: its step, and its walk.

`naive` runs the step in a Python loop over 256 images on one device. `spread` runs the library's
scan over 8192 images on eight devices, ten rows a call.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.samplers import (
    MEANS,
    SCHEDULE,
    SHAPE,
    STD,
    WEIGHTS,
    grid_of,
    mixture,
    naive_walk,
    rows_of,
    step,
)

from ddpm_jax import samplers
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, squaredcos, zero_terminal_snr
from ddpm_jax.samplers import initial_noise, sample_in_chunks, sample_keys

NAMES = samplers.names()
COUNT = 8192
SOME = slice(-256, None)
ROWS = 10
MIXTURE, CLIPPED = mixture(), mixture(clip_x0=1.0)
every_sampler = pytest.mark.parametrize("name", NAMES)


def every_sampler_and(*others):
    """Every sampler with its default options, and some with others."""
    cases = [*((name, {}) for name in NAMES), *others]
    ids = [" ".join([name, *map(str, options.values())]) for name, options in cases]
    return pytest.mark.parametrize(("name", "options"), cases, ids=ids)


@functools.cache
def keys_and_noise(seed):
    """Keys over all devices, the noise of each, and both for `SOME` images on one device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    keys = sample_keys(seed, jnp.arange(COUNT))
    xT = initial_noise(keys, SHAPE)
    return jax.device_put(keys, spread), jax.device_put(xT, spread), keys[SOME], xT[SOME]


def naive(name, denoise=MIXTURE, *, steps=20, seed=0, grid=None, **options):
    """The states of `SOME` images after each row."""
    keys, xT = keys_and_noise(seed)[2:]
    grid = grid_of(steps) if grid is None else grid
    return list(naive_walk(samplers.make(name, **options), keys, denoise, grid, xT))


def spread(name, denoise=MIXTURE, *, grid, seed=0, **options):
    """The states of all images after every ten rows, on eight devices."""
    keys, xT = keys_and_noise(seed)[:2]
    sampler = samplers.make(name, **options)
    return list(sample_in_chunks(keys, denoise, sampler, grid, xT, len(grid.i) // ROWS))


def one_step(name, row, seed=0):
    """Where a first step along the row takes the same `SOME` images, with the noise of a seed."""
    sampler, xt = samplers.make(name), keys_and_noise(0)[3]
    return step(sampler, keys_and_noise(seed)[2], MIXTURE, xt, row, sampler.init(xt))[0]


def changed_options(name):
    """The sampler's options that are numbers, each a little off its default."""
    parameters = inspect.signature(samplers.find(name)).parameters.values()
    return {p.name: p.default + 0.1 for p in parameters if isinstance(p.default, float)}


@every_sampler
def test_chunks_over_eight_devices_are_the_naive_loop_over_some_of_their_images(name):
    states, found = naive(name), spread(name, grid=grid_of(20))
    assert [len(state.sharding.device_set) for state in found] == [8, 8]
    for state, wanted in zip(found, states[ROWS - 1 :: ROWS], strict=True):
        np.testing.assert_allclose(np.asarray(state)[SOME], wanted, atol=1e-5)
    assert np.std(states[-1][0] - states[-1][1]) > 0.01


@every_sampler
def test_numbers_are_traced(name):
    """Seed, data, limit of x0, timesteps and options: one program, and each changes the images."""
    grid = grid_of(ROWS)
    (first,) = spread(name, grid=grid)
    count = samplers._walk_jit._cache_size()
    others = {
        "seed": spread(name, grid=grid, seed=1),
        "data": spread(name, mixture(-MEANS, 0.2), grid=grid),
        "limit": spread(name, mixture(clip_x0=0.5), grid=grid),
        "timesteps": spread(name, grid=grid_of(ROWS, "leading")),
    }
    for changed, (other,) in others.items():
        assert np.max(np.abs(other - first)) > 1e-4, changed
    spread(name, grid=grid, **changed_options(name))
    assert samplers._walk_jit._cache_size() == count


@every_sampler_and(("euler_ancestral", {"eta": 0.0}))
def test_a_walk_depends_on_the_key_only_where_a_sampler_states_no_order(name, options):
    keys, xT = keys_and_noise(0)[2:]
    ends = []
    for some in (keys, keys_and_noise(1)[2]):
        *_, x0 = naive_walk(samplers.make(name, **options), some, MIXTURE, grid_of(20), xT)
        ends.append(x0)
    fixed = samplers.make(name).order is not None or options == {"eta": 0.0}
    assert np.array_equal(*ends) == fixed


@every_sampler
def test_the_last_step_adds_no_noise(name):
    *_, row = rows_of(grid_of(10))
    np.testing.assert_array_equal(*(one_step(name, row, seed) for seed in (0, 1)))


@every_sampler
def test_data_of_one_point_are_reached_exactly(name):
    point = np.linspace(-0.9, 0.9, 4).reshape(SHAPE)
    for steps in (1, 10):
        x0 = naive(name, mixture(point, 0.0), steps=steps)[-1]
        assert np.max(np.abs(x0 - point)) <= 1e-5, f"{steps} steps"


NOISY = [("ddim", {"eta": 0.5}), ("edm", {"S_churn": 40.0}), ("ddpm", {"variance": "fixed_large"})]


@every_sampler_and(*NOISY)
def test_moments_of_a_mixture_are_recovered(name, options):
    """Means, the whole covariance of four correlated numbers, and third moments."""
    x0 = np.asarray(spread(name, grid=grid_of(200), **options)[-1], float).reshape(COUNT, 4)
    means = MEANS.reshape(5, 4).astype(float)
    mean = WEIGHTS @ means
    off = means - mean
    covariance = (WEIGHTS * off.T) @ off + STD**2 * np.eye(4)
    third = WEIGHTS @ (off**3 + 3 * off * STD**2)
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x0.mean(0) - mean) < 5 * std / np.sqrt(COUNT) + 0.01 * std)
    away = x0 - mean
    products = away[:, :, None] * away[:, None, :]
    error = 5 * products.std(0) / np.sqrt(COUNT) + 0.02 * np.outer(std, std)
    assert np.all(np.abs(products.mean(0) - covariance) < error)
    cubes = away**3
    assert np.all(np.abs(cubes.mean(0) - third) < 5 * cubes.std(0) / np.sqrt(COUNT) + 0.02 * std**3)


@every_sampler
def test_a_finite_set_gives_its_own_images(name):
    images = np.random.default_rng(1).uniform(-1, 1, (5, *SHAPE)).astype(np.float32)
    denoise = mixture(images, 0.0, weights=np.full(5, 0.2, np.float32))
    x0 = np.asarray(spread(name, denoise, grid=grid_of(100))[-1])
    distance = np.max(np.abs(x0[:, None] - images[None]), (2, 3, 4))
    assert np.mean(distance.min(1) < 1e-3) > 0.95  # the others were between two images to the end
    counts = np.bincount(distance.argmin(1), minlength=5)
    assert np.max(np.abs(counts - COUNT / 5)) < 5 * np.sqrt(COUNT * 0.2 * 0.8)


@every_sampler
def test_pure_noise_is_a_level_to_start_from(name):
    """alpha_bar = 0 at the first row: sigma and the first step in log SNR are infinite."""
    point = np.linspace(-0.9, 0.9, 4).reshape(SHAPE)
    for case, betas in {
        "zero_terminal": zero_terminal_snr(linear()),
        "squaredcos": squaredcos(1000, max_beta=1.0),
    }.items():
        schedule = from_betas(betas)
        grid = grid_of(50, schedule=schedule)
        x0 = np.asarray(spread(name, mixture(point, 0.1, schedule=schedule), grid=grid)[-1])
        np.testing.assert_allclose(x0.mean(0), point, atol=0.1, err_msg=case)
        assert 0.05 < float(x0.std(0).mean()) < 0.2, case


@every_sampler
def test_few_steps_from_almost_pure_noise_stay_finite(name):
    """alpha_bar = 2e-9 at the first row: rounding all but hides the levels of the next."""
    schedule = from_betas(squaredcos())
    denoise = mixture(0.5, 0.1, schedule=schedule)
    for steps in (1, 2, 5):
        x0 = naive(name, denoise, grid=grid_of(steps, schedule=schedule))[-1]
        assert np.all(np.isfinite(x0)), f"{steps} steps"


@every_sampler_and(("pndm", {"runge_kutta": False}))
def test_a_walk_asks_the_denoiser_as_often_as_the_sampler_states(name, options):
    asked = []

    def network(xt, t):
        jax.debug.callback(asked.append, t[0])
        return 0.1 * xt

    keys, xT = sample_keys(0, jnp.arange(2)), np.ones((2, 1, 1, 1), np.float32)
    sampler, denoise = samplers.make(name, **options), make_denoiser(SCHEDULE, network)
    for steps in (1, 2, 3, 6):
        asked.clear()
        jax.block_until_ready(list(naive_walk(sampler, keys, denoise, grid_of(steps), xT)))
        jax.effects_barrier()
        assert len(asked) == sampler.asks(steps), f"{steps} steps"


# Samplers that must be one another, on a network whose output is not linear in x

IDENTITIES = [
    (("ddim", {"eta": 1.0}), ("ddpm", {})),
    (("euler", {}), ("ddim", {})),
    (("euler_ancestral", {"eta": 0.0}), ("euler", {})),
    (("euler_ancestral", {"eta": 0.6}), ("ddim", {"eta": 0.6})),
    (("edm", {}), ("heun", {})),
    (("lms", {"order": 1}), ("euler", {})),
    (("deis", {"order": 1}), ("euler", {})),
    (("unipc", {"order": 1, "corrector": False}), ("ddim", {})),
    (("unipc", {"order": 2, "corrector": False}), ("dpmpp_2m", {})),
]


@pytest.mark.parametrize(("one", "other"), IDENTITIES, ids=str)
def test_one_sampler_is_another(one, other):
    for case, denoise in {"clipped": CLIPPED, "unclipped": MIXTURE}.items():
        ends = [naive(name, denoise, **options)[-1] for name, options in (one, other)]
        found, wanted = map(np.asarray, ends)
        scale = np.max(np.abs(wanted))
        np.testing.assert_allclose(found / scale, wanted / scale, atol=2e-5, err_msg=case)


def test_the_first_step_of_the_sde_solver_is_ancestral():
    row = list(rows_of(grid_of(10)))[3]
    found, wanted = (one_step(name, row) for name in ("dpmpp_2m_sde", "ddpm"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
