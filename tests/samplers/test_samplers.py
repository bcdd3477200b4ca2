"""Claims about every sampler, found by its module.

All tests of a sampler share one compiled step.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.samplers import MEANS, SCHEDULE, SHAPE, STD, WEIGHTS, grid_of, mixture, rows_of, step
from helpers.samplers import naive_walk as walk
from scipy.special import ndtri
from scipy.stats import qmc

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, timesteps_for
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import (
    flow_betas,
    from_betas,
    linear_betas,
    squaredcos_betas,
    zero_terminal_snr,
)
from ddpm_jax.samplers import initial_noise, sample, sample_keys

NAMES = samplers.names()
NUM_IMAGES = 512
MIXTURE = mixture()
CLIPPED = mixture(clip_x0=1.0)
POINT = np.linspace(-0.9, 0.9, 2).reshape(SHAPE)
TWO_KEYS = sample_keys(0, jnp.arange(2))
TWO_XT = jnp.ones((2, 1, 1, 1))
every_sampler = pytest.mark.parametrize("name", NAMES)


def every_sampler_and(*others):
    """Every sampler with its default options, and the (name, options) in `others`."""
    cases = [*((name, {}) for name in NAMES), *others]
    ids = [" ".join([name, *map(str, options.values())]) for name, options in cases]
    return pytest.mark.parametrize(("name", "options"), cases, ids=ids)


@functools.cache
def keys_and_noise(seed):
    keys = sample_keys(seed, jnp.arange(NUM_IMAGES))
    return keys, initial_noise(keys, SHAPE)


def draw(name, denoise=MIXTURE, grid=20, seed=0, xT=None, **options):
    """The images at the end of a walk. `grid` is a grid or a number of steps."""
    grid = grid_of(grid) if isinstance(grid, int) else grid
    keys, noise = keys_and_noise(seed)
    xT = noise if xT is None else xT
    *_, x0 = walk(samplers.make(name, **options), keys, denoise, grid, xT)
    return np.asarray(x0)


def one_step(name, row, seed=0):
    """x_next after a first step at a row, from fixed images with the step noise of `seed`."""
    sampler = samplers.make(name)
    keys, _ = keys_and_noise(seed)
    _, xt = keys_and_noise(0)
    x_next, _ = step(sampler, keys, MIXTURE, xt, row, sampler.init(xt))
    return x_next


def changed_options(name):
    """The sampler's float options, each a little off its default."""
    parameters = inspect.signature(samplers.factory(name)).parameters.values()
    return {p.name: p.default + 0.1 for p in parameters if isinstance(p.default, float)}


@every_sampler
def test_an_image_depends_neither_on_its_place_nor_on_the_other_images(name):
    whole = draw(name, grid=10)
    keys, xT = keys_and_noise(0)
    other_keys, other_xT = keys_and_noise(1)
    keys = jnp.concatenate([keys[250:], other_keys[:250]])
    xT = jnp.concatenate([xT[250:], other_xT[:250]])
    *_, x0 = walk(samplers.make(name), keys, MIXTURE, grid_of(10), xT)
    np.testing.assert_allclose(x0[:-250], whole[250:], atol=1e-5)
    assert np.std(whole[0] - whole[1]) > 0.01


@every_sampler
def test_a_sampler_can_be_scanned(name):
    """The state keeps its structure, shapes and dtypes from `init` on."""
    sampler = samplers.make(name)
    keys, xT = keys_and_noise(0)
    walk = keys, MIXTURE, sampler, grid_of(10), xT
    states = jax.eval_shape(lambda: sample(*walk, trajectory=True))
    assert states.shape == (11, NUM_IMAGES, *SHAPE)


@every_sampler
def test_seed_data_limit_timesteps_and_float_options_are_traced(name):
    """All of them share one program, and each but the options changes the images."""
    first = draw(name, grid=5)
    num_programs = step._cache_size()
    others = {
        "seed": draw(name, grid=5, seed=1),
        "data": draw(name, mixture(-MEANS, 0.2), grid=5),
        "limit": draw(name, mixture(clip_x0=0.5), grid=5),
        "timesteps": draw(name, grid=grid_of(5, "leading")),
        "steps": draw(name, grid=4),
    }
    for changed, other in others.items():
        assert np.max(np.abs(other - first)) > 1e-4, changed
    draw(name, grid=5, **changed_options(name))
    assert step._cache_size() == num_programs


@every_sampler_and(("euler_ancestral", {"eta": 0.0}))
def test_a_walk_depends_on_the_key_only_if_the_sampler_states_no_order(name, options):
    sampler = samplers.make(name, **options)
    keys, xT = keys_and_noise(0)
    other_keys, _ = keys_and_noise(1)
    *_, x0 = walk(sampler, keys, MIXTURE, grid_of(20), xT)
    *_, other_x0 = walk(sampler, other_keys, MIXTURE, grid_of(20), xT)
    deterministic = sampler.order is not None or options == {"eta": 0.0}
    assert np.array_equal(x0, other_x0) == deterministic


@every_sampler
def test_the_last_step_adds_no_noise(name):
    *_, row = rows_of(grid_of(10))
    np.testing.assert_array_equal(*(one_step(name, row, seed) for seed in (0, 1)))


@every_sampler
def test_data_of_a_single_point_is_reached_exactly(name):
    for steps in (1, 10):
        x0 = draw(name, mixture(POINT, 0.0), steps)
        assert np.max(np.abs(x0 - POINT)) <= 1e-5, f"{steps} steps"


@every_sampler_and(("edm", {"S_churn": 40.0}))
def test_moments_of_a_mixture_are_recovered(name, options):
    """Check the means, the covariance of two correlated numbers, and third moments.

    Of samplers that add noise, 4096 images are drawn. The others draw 512 from quasi-random xT,
    which are as good as 8192 at random.
    """
    order = samplers.make(name).order
    steps = 50 if order and order > 1 else 200
    if order and not options:
        quasi_random = qmc.Sobol(2, rng=0).random(NUM_IMAGES)
        xT = ndtri(quasi_random).reshape(NUM_IMAGES, *SHAPE)
        x0 = draw(name, grid=steps, xT=np.float32(xT))
        n = 16 * NUM_IMAGES
    else:
        x0 = np.concatenate([draw(name, grid=steps, seed=seed, **options) for seed in range(8)])
        n = len(x0)
    x0 = x0.reshape(-1, 2).astype(float)
    mean = WEIGHTS @ MEANS.reshape(3, 2)
    shifts = MEANS.reshape(3, 2) - mean
    covariance = (WEIGHTS * shifts.T) @ shifts + STD**2 * np.eye(2)
    third = WEIGHTS @ (shifts**3 + 3 * shifts * STD**2)
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x0.mean(0) - mean) < 5 * std / np.sqrt(n) + 0.01 * std)
    centred = x0 - mean
    products = centred[:, :, None] * centred[:, None, :]  # (n, 2, 2)
    cubes = centred**3
    error = 5 * products.std(0) / np.sqrt(n) + 0.02 * np.outer(std, std)
    assert np.all(np.abs(products.mean(0) - covariance) < error)
    assert np.all(np.abs(cubes.mean(0) - third) < 5 * cubes.std(0) / np.sqrt(n) + 0.02 * std**3)


@every_sampler
def test_samples_of_a_finite_data_set_are_its_images(name):
    denoise = mixture(MEANS, 0.0, weights=np.full(3, 1 / 3, np.float32))
    x0 = np.concatenate([draw(name, denoise, grid=100, seed=seed) for seed in range(2)])
    distance = np.max(np.abs(x0[:, None] - MEANS[None]), (2, 3, 4))  # (n, 3)
    # A few samples stay between two images to the end.
    assert np.mean(distance.min(1) < 1e-3) > 0.95
    counts = np.bincount(distance.argmin(1), minlength=3)
    assert np.max(np.abs(counts - len(x0) / 3)) < 5 * np.sqrt(len(x0) * 2 / 9)


@every_sampler
def test_a_walk_can_start_from_pure_noise(name):
    """With alpha_bar = 0 at the first row, sigma and the first step in log SNR are infinite."""
    cases = {
        "zero_terminal": zero_terminal_snr(linear_betas()),
        "squaredcos": squaredcos_betas(1000, max_beta=1.0),
    }
    for case, betas in cases.items():
        schedule = from_betas(betas)
        grid = grid_of(25, schedule=schedule)
        x0 = draw(name, mixture(POINT, 0.1, schedule=schedule), grid)
        np.testing.assert_allclose(x0.mean(0), POINT, atol=0.1, err_msg=case)
        assert 0.05 < float(x0.std(0).mean()) < 0.2, case


@every_sampler_and(
    ("unipc", {"order": 3}),
    ("dpmpp_3m", {"compat": True}),
    ("ddpm", {"variance": "fixed_large"}),
)
def test_a_last_row_to_its_own_level_hardly_changes_the_image(name, options):
    """A grid to t = 0 by a spacing that ends there. Only a corrector still changes the image."""
    t = timesteps_for(SCHEDULE, 20, "log_snr")
    atol = 0.02 if name in ("unipc", "dpm_solver_v3") else 2e-6
    with_row = draw(name, grid=make_grid(SCHEDULE, t, end=0), **options)
    without = draw(name, grid=make_grid(SCHEDULE, t[:-1], end=0), **options)
    np.testing.assert_allclose(with_row, without, atol=atol)


@every_sampler
def test_few_steps_from_almost_pure_noise_stay_finite(name):
    """With alpha_bar = 2e-9 at the first row, little of the next levels is left after rounding."""
    schedule = from_betas(squaredcos_betas())
    for steps in (1, 2, 5):
        x0 = draw(name, mixture(0.5, 0.1, schedule=schedule), grid_of(steps, schedule=schedule))
        assert np.all(np.isfinite(x0)), f"{steps} steps"


def calls_by_tracing(monkeypatch, sampler):
    """Count the calls of the denoiser in one step, and those inside a branch or a loop."""
    calls = []
    depth = []

    def network(xt, t):
        calls.append(bool(depth))
        return 0.1 * xt

    def nested(control):
        def wrapped(*arguments, **options):
            depth.append(1)
            result = control(*arguments, **options)
            depth.pop()
            return result

        return wrapped

    row = grid_of(3).row(0)
    denoise = make_denoiser(SCHEDULE, network)
    with monkeypatch.context() as patch:
        for name in ("cond", "switch", "scan", "map", "while_loop", "fori_loop"):
            patch.setattr(jax.lax, name, nested(getattr(jax.lax, name)))
        jax.make_jaxpr(sampler.step)(TWO_KEYS, denoise, TWO_XT, row, sampler.init(TWO_XT))
    return len(calls), sum(calls)


def calls_by_running(sampler, steps):
    """Yield the number of calls of the denoiser in a walk, for each number of steps."""
    calls = []

    def network(xt, t):
        jax.debug.callback(calls.append, t[0])
        return 0.1 * xt

    denoise = make_denoiser(SCHEDULE, network)
    for each in steps:
        calls.clear()
        jax.block_until_ready(list(walk(sampler, TWO_KEYS, denoise, grid_of(each), TWO_XT)))
        jax.effects_barrier()
        yield len(calls)


@every_sampler_and(("pndm", {"runge_kutta": False}))
def test_a_walk_calls_the_denoiser_as_often_as_the_sampler_states(monkeypatch, name, options):
    sampler = samplers.make(name, **options)
    steps = (1, 2, 3, 6)
    calls_per_step, calls_in_branches = calls_by_tracing(monkeypatch, sampler)
    # Tracing does not tell which branch runs.
    if calls_in_branches:
        calls = list(calls_by_running(sampler, steps))
    else:
        calls = [calls_per_step * each for each in steps]
    assert calls == [sampler.num_evaluations(each) for each in steps]


# Pairs of samplers that agree, on a network whose output is not linear in x

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
def test_two_samplers_with_these_options_agree(one, other):
    for case, denoise in {"clipped": CLIPPED, "unclipped": MIXTURE}.items():
        x0, expected = (draw(name, denoise, **options) for name, options in (one, other))
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(x0 / scale, expected / scale, atol=2e-5, err_msg=case)


@pytest.mark.parametrize(
    "options",
    [
        {"S_churn": 2.0},
        {"S_churn": 40.0},
        {"S_churn": 40.0, "S_noise": 1.5},
        {"S_churn": 40.0, "S_min": 1e6},
        {"S_churn": 40.0, "S_max": 1e-6},
    ],
    ids=str,
)
def test_edm_adds_the_noise_that_its_options_state(options):
    """Algorithm 2, Karras et al. 2022, where the estimate of x0 is always the same."""
    keys, xt = keys_and_noise(0)
    sampler = samplers.make("edm", **options)
    row = list(rows_of(grid_of(10)))[5]
    x_next, _ = step(sampler, keys, mixture(POINT, 0.0), xt, row, sampler.init(xt))
    given = {"S_min": 0.0, "S_max": np.inf, "S_noise": 1.0} | options
    sigma = row.sqrt_one_minus_alpha_bar / row.sqrt_alpha_bar
    is_inside = given["S_min"] <= sigma <= given["S_max"]
    gamma = min(given["S_churn"] / 10, 2**0.5 - 1) if is_inside else 0.0
    hat = sigma * (1 + gamma)
    noise = np.sqrt(hat**2 - sigma**2) * given["S_noise"] * samplers.step_noise(keys, row, xt)
    y_hat = np.asarray(xt / row.sqrt_alpha_bar + noise)
    sigma_next = row.sqrt_one_minus_alpha_bar_next / row.sqrt_alpha_bar_next
    expected = row.sqrt_alpha_bar_next * (POINT + sigma_next / hat * (y_hat - POINT))
    np.testing.assert_allclose(x_next, expected, atol=1e-3)


def test_derivatives_of_samples_are_finite():
    keys, xT = TWO_KEYS, jnp.ones((2, *SHAPE))
    flow = from_betas(flow_betas(50))

    def predict_with_variance(xt, t):
        return jnp.concatenate([0.1 * xt, 0.1 * xt], -1)

    def total(name, denoise, schedule, **options):
        grid = grid_of(5, schedule=schedule)
        sampler = samplers.make(name, **options)
        return lambda xT: jnp.sum(sample(keys, denoise, sampler, grid, xT))

    third = total("dpmpp_3m", MIXTURE, SCHEDULE, compat=True)
    assert np.isfinite(jax.grad(third)(xT)).all()
    churned = total("edm", mixture(schedule=flow), flow, S_churn=5.0)
    assert np.isfinite(jax.grad(churned)(xT)).all()
    learned = make_denoiser(SCHEDULE, predict_with_variance)
    ancestral = total("ddpm", learned, SCHEDULE, variance="learned_range")
    assert np.isfinite(jax.jvp(ancestral, (xT,), (xT,))[1])

    def of_eta(sampler):
        return jnp.sum(sample(keys, MIXTURE, sampler, grid_of(5), xT))

    [by_eta] = jax.tree.leaves(jax.grad(of_eta)(samplers.make("ddim", eta=0.5)))
    assert np.isfinite(by_eta)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m"])
@pytest.mark.parametrize(("steps", "falls"), [(14, True), (15, False)])
def test_compat_lowers_the_last_order_of_fewer_than_15_steps(name, steps, falls):
    grid = make_grid(SCHEDULE, np.linspace(999, 100, steps).round(), end=50)
    keys, xT = keys_and_noise(0)
    *_, before, last = walk(samplers.make(name, compat=True), keys, MIXTURE, grid, xT)
    *_, row = rows_of(grid)
    ddim = samplers.make("ddim")
    expected, _ = step(ddim, keys, MIXTURE, before, row, ddim.init(before))
    assert np.allclose(last, expected, atol=1e-5) == falls


def test_heun_corrects_the_slope_at_almost_no_signal_only_with_compat():
    schedule = from_betas(squaredcos_betas())
    row = next(rows_of(grid_of(10, schedule=schedule)))
    assert row.sqrt_alpha_bar < 1e-3
    keys, xt = keys_and_noise(0)

    def end(name, **options):
        sampler = samplers.make(name, **options)
        return step(sampler, keys, mixture(schedule=schedule), xt, row, sampler.init(xt))[0]

    np.testing.assert_allclose(end("heun"), end("euler"), atol=1e-5)
    assert np.abs(end("heun", compat=True) - end("euler")).max() > 1e-2


def test_the_first_step_of_dpmpp_2m_sde_is_the_ancestral_step():
    row = list(rows_of(grid_of(10)))[3]
    x_next, expected = (one_step(name, row) for name in ("dpmpp_2m_sde", "ddpm"))
    np.testing.assert_allclose(x_next, expected, atol=1e-5)
