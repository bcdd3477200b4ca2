"""Every sampler against exact solutions: one point, a Gaussian, and the same picture whatever the batch or the loop."""

import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.grids import make_grid, spaced
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import initial_noise, sample, sample_in_chunks, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm
from ddpm_jax.schedule import from_betas, linear, per_example, squaredcos

NAMES = samplers.names()
SCHEDULE = from_betas(linear())
ALPHA_BAR = np.cumprod(1 - linear())
MU, STD = 0.3, 0.5
BATCH, SHAPE = 64, (12, 12, 1)
N = BATCH * 144
every_sampler = pytest.mark.parametrize("name", NAMES)


def grid_of(steps, spacing="trailing", schedule=SCHEDULE):
    return make_grid(schedule, spaced(schedule.timesteps, steps, spacing))


def gaussian_x0(schedule, xt, t):
    """E[x0 | xt] where every pixel of the data is N(MU, STD^2)."""
    signal, noise = per_example(schedule.at(t), xt)
    return MU + STD**2 * signal * (xt - signal * MU) / (STD**2 * signal**2 + noise**2)


def convolution(kernel, xt, t):
    """A network that mixes the pixels of a picture, so that its rounding may depend on the batch."""
    return jax.lax.conv_general_dilated(xt, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


GAUSSIAN = make_denoiser(SCHEDULE, Partial(gaussian_x0, SCHEDULE), "x0", None)
KERNEL = 0.3 * jax.random.normal(jax.random.key(9), (3, 3, 1, 1))
CONVOLUTION = make_denoiser(SCHEDULE, Partial(convolution, KERNEL))


def noise_and_keys(seed, count=BATCH):
    keys = sample_keys(seed, jnp.arange(count))
    return keys, initial_noise(keys, SHAPE)


def assert_moments(states, means, stds):
    """Each state's sample mean and deviation within 5 standard errors, and rounding, of the exact ones."""
    states = np.asarray(states, float).reshape(len(means), -1)
    n = states.shape[1]
    assert np.all(np.abs(states.mean(1) - means) <= 5 * stds / np.sqrt(n) + 1e-5)
    assert np.all(np.abs(states.std(1) - stds) <= 5 * stds / np.sqrt(2 * n) + 1e-5)


@every_sampler
def test_all_steps_recover_a_gaussian(name):
    keys, xT = noise_and_keys(0)
    x0 = np.asarray(sample(keys, GAUSSIAN, samplers.make(name), grid_of(1000), xT), float)
    assert abs(x0.mean() - MU) < 5 * STD / np.sqrt(N) + 0.01
    assert abs(x0.std() / STD - 1) < 5 / np.sqrt(2 * N) + 0.01


@every_sampler
@pytest.mark.parametrize("steps", [1, 10])
def test_data_of_one_point_are_reached_exactly(name, steps):
    keys, xT = noise_and_keys(1, 4)
    point = jnp.broadcast_to(jnp.linspace(-0.9, 0.9, 144).reshape(1, *SHAPE), xT.shape)
    denoise = make_denoiser(SCHEDULE, lambda xt, t: point, "x0", None)
    np.testing.assert_allclose(sample(keys, denoise, samplers.make(name), grid_of(steps), xT), point, atol=1e-5)


def ancestral_chain(times, variance):
    """Exact mean and deviation of every state of Algorithm 2 over a Gaussian, from x_T ~ N(0, 1), in float64."""
    mean, var, states = 0.0, 1.0, [(0.0, 1.0)]
    for i, t in enumerate(times):
        here = ALPHA_BAR[t]
        after = ALPHA_BAR[times[i + 1]] if i + 1 < len(times) else 1.0
        beta = 1 - here / after
        of_x0, of_xt = np.sqrt(after) * beta / (1 - here), np.sqrt(here / after) * (1 - after) / (1 - here)
        gain = STD**2 * np.sqrt(here) / (STD**2 * here + 1 - here)
        mean = of_x0 * (MU + gain * (mean - np.sqrt(here) * MU)) + of_xt * mean
        added = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
        var = (of_x0 * gain + of_xt) ** 2 * var + added
        states.append((mean, np.sqrt(var)))
    return np.array(states).T


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("steps", "spacing"), [(10, "trailing"), (25, "leading")])
def test_ancestral_sampling_has_the_moments_of_its_chain_at_every_state(variance, steps, spacing):
    keys, xT = noise_and_keys(2)
    grid = grid_of(steps, spacing)
    states = sample(keys, GAUSSIAN, ddpm(variance=variance), grid, xT, trajectory=True)
    assert_moments(states, *ancestral_chain(grid.t.tolist(), variance))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_one_ancestral_step_has_the_distribution_of_eq_7(variance, i):
    keys, grid = noise_and_keys(3)[0], grid_of(10)
    t, here = int(grid.t[i]), ALPHA_BAR[int(grid.t[i])]
    after = ALPHA_BAR[int(grid.t_next[i])] if i < 9 else 1.0
    xt = jnp.full((BATCH, *SHAPE), 0.8)
    x0 = np.asarray(gaussian_x0(SCHEDULE, xt, jnp.full(BATCH, t)), float)[0, 0, 0, 0]
    beta = 1 - here / after
    mean = (np.sqrt(after) * beta * x0 + np.sqrt(here / after) * (1 - after) * 0.8) / (1 - here)
    var = beta * (1 - after) / (1 - here) if variance == "fixed_small" else beta * (after < 1)
    x_next, memory = ddpm(variance=variance).step(keys, GAUSSIAN, xt, grid.row(i), ())
    assert memory == ()
    assert_moments(x_next[None], [mean], np.sqrt([var]))
    noise = step_noise(keys, grid.row(i), xt)
    np.testing.assert_allclose(x_next, mean + np.sqrt(var) * np.asarray(noise, float), atol=1e-5)


@every_sampler
def test_the_last_step_adds_no_noise(name):
    sampler, row, (_, xt) = samplers.make(name), grid_of(10).row(9), noise_and_keys(4, 4)
    ends = [sampler.step(noise_and_keys(seed, 4)[0], GAUSSIAN, xt, row, sampler.init(xt))[0] for seed in (5, 6)]
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_ancestral_step_is_the_estimate_of_clean_data(variance):
    keys, xt = noise_and_keys(4, 4)
    row = grid_of(10).row(9)
    x_next, _ = ddpm(variance=variance).step(keys, GAUSSIAN, xt, row, ())
    np.testing.assert_allclose(x_next, GAUSSIAN(xt, row.t).x0, atol=1e-6)


def test_clip_sample_is_the_loop_of_s1():
    betas = linear(20, 1e-3, 0.5)
    schedule = from_betas(betas)
    keys, xT = noise_and_keys(7, 4)
    grid = grid_of(20, schedule=schedule)
    denoise = make_denoiser(schedule, lambda xt, t: 0.9 * xt + 0.2 * jnp.sin(3 * xt), "eps", None)
    sampler = ddpm(variance="fixed_large", clip_sample=1.0)
    states = sample(keys, denoise, sampler, grid, xT, trajectory=True)

    x, alpha, alpha_bar = np.asarray(xT, float), 1 - betas, np.cumprod(1 - betas)
    for i, t in enumerate(range(19, -1, -1)):
        eps = 0.9 * x + 0.2 * np.sin(3 * x)
        x = (x - (1 - alpha[t]) / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
        if t > 0:
            x = x + np.sqrt(betas[t]) * np.asarray(step_noise(keys, grid.row(i), xT), float)
        x = np.clip(x, -1, 1)
        np.testing.assert_allclose(states[i + 1], x, atol=1e-4)
    assert jnp.max(jnp.abs(xT)) > 1
    assert jnp.max(jnp.abs(states[1:])) == 1


@every_sampler
def test_scan_loop_and_chunks_are_the_same_walk(name):
    keys, xT = noise_and_keys(8, 4)
    sampler, grid = samplers.make(name), grid_of(10)
    walk = keys, CONVOLUTION, sampler, grid, xT
    states = sample(*walk, trajectory=True)
    assert states.shape == (11, *xT.shape)
    np.testing.assert_array_equal(states[0], xT)
    xt, memory = xT, sampler.init(xT)
    for i in range(10):
        xt, memory = sampler.step(keys, CONVOLUTION, xt, grid.row(i), memory)
        np.testing.assert_allclose(states[i + 1], xt, atol=1e-4)
    x0 = sample(*walk)
    np.testing.assert_allclose(x0, states[-1], atol=1e-5)
    np.testing.assert_array_equal(next(sample_in_chunks(*walk)), x0)
    for state, wanted in zip(sample_in_chunks(*walk, 5), states[2::2], strict=True):
        np.testing.assert_allclose(state, wanted, atol=1e-5)


@pytest.mark.parametrize("chunks", [-1, 0, 3, 20])
def test_chunks_that_do_not_divide_the_steps_are_refused(chunks):
    keys, xT = noise_and_keys(0, 4)
    with pytest.raises(ValueError, match=f"10 steps do not divide into {chunks} equal chunks"):
        next(sample_in_chunks(keys, CONVOLUTION, ddpm(), grid_of(10), xT, chunks))


def test_noise_depends_on_seed_sample_and_step_alone():
    keys, xT = noise_and_keys(0)
    noises = [xT, *(step_noise(keys, grid_of(10).row(i), xT) for i in range(3)), noise_and_keys(1)[1]]
    for count in (1, 7):
        part, part_xT = noise_and_keys(0, count)
        np.testing.assert_array_equal(part_xT, xT[:count])
        np.testing.assert_array_equal(step_noise(part, grid_of(10).row(2), part_xT), noises[3][:count])
    np.testing.assert_array_equal(initial_noise(sample_keys(0, jnp.arange(5, 9)), SHAPE), xT[5:9])
    pixels = np.stack(noises).reshape(5 * BATCH, -1)
    correlations = np.corrcoef(pixels) - np.eye(len(pixels))
    assert np.max(np.abs(correlations)) < 6.5 / np.sqrt(pixels.shape[1])
    assert_moments(noises, np.zeros(5), np.ones(5))


@every_sampler
def test_a_picture_does_not_depend_on_the_batch(name):
    sampler, grid = samplers.make(name), grid_of(10)
    keys, xT = noise_and_keys(0)
    whole = sample(keys, CONVOLUTION, sampler, grid, xT)
    assert jnp.std(whole[0] - whole[1]) > 0.01
    for count in (1, 7):
        part = sample(keys[-count:], CONVOLUTION, sampler, grid, xT[-count:])
        np.testing.assert_allclose(part, whole[-count:], atol=0.5 / 255)


def changed_options(name):
    """The sampler's options that are numbers, each a little off its default."""
    parameters = inspect.signature(samplers.find(name)).parameters.values()
    return {p.name: p.default + 0.1 for p in parameters if isinstance(p.default, float)}


@every_sampler
@pytest.mark.parametrize("run", [sample, lambda *walk: next(sample_in_chunks(*walk))], ids=["sample", "chunks"])
def test_new_numbers_do_not_recompile(name, run):
    traces = []

    def network(weight, xt, t):
        traces.append(t)
        return weight * xt

    def walk(seed, weight, clip_x0, steps, **options):
        keys, xT = noise_and_keys(seed, 4)
        denoise = make_denoiser(SCHEDULE, Partial(network, jnp.float32(weight)), "eps", clip_x0)
        return run(keys, denoise, samplers.make(name, **options), steps, xT)

    first = walk(0, 0.1, 1.0, grid_of(10))
    count = len(traces)
    others = [
        walk(1, 0.1, 1.0, grid_of(10)),
        walk(0, 0.2, 1.0, grid_of(10)),
        walk(0, 0.1, 0.5, grid_of(10)),
        walk(0, 0.1, 1.0, grid_of(10, "leading")),
    ]
    walk(0, 0.1, 1.0, grid_of(10), **changed_options(name))
    assert all(jnp.any(other != first) for other in others)
    assert len(traces) == count


def test_another_clip_sample_does_not_recompile():
    keys, xT = noise_and_keys(0, 4)
    before = samplers._walk_jit._cache_size()
    for clip_sample in (1.0, 0.5):
        *_, x0 = sample_in_chunks(keys, CONVOLUTION, ddpm(clip_sample=clip_sample), grid_of(10), xT)
        assert jnp.max(jnp.abs(x0)) <= clip_sample
    assert samplers._walk_jit._cache_size() == before + 1


@every_sampler
def test_a_denoiser_may_be_any_function(name):
    keys, xT = noise_and_keys(0, 4)
    walk = samplers.make(name), grid_of(10), xT
    x0 = sample(keys, CONVOLUTION, *walk)

    def denoise(xt, t):
        return CONVOLUTION(xt, t)

    np.testing.assert_allclose(sample(keys, denoise, *walk), x0, atol=1e-5)
    np.testing.assert_allclose(next(sample_in_chunks(keys, denoise, *walk)), x0, atol=1e-5)


@every_sampler
def test_a_sampler_is_found_by_the_name_of_its_module(name):
    function = samplers.find(name)
    assert (function.__module__, function.__name__) == (f"ddpm_jax.samplers.{name}", name)
    assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(function).parameters.values())
    assert "ddpm" in NAMES


@pytest.mark.parametrize("name", ["nonsense", "DDPM", "__init__", ""])
def test_a_wrong_name_is_answered_by_the_names_there_are(name):
    with pytest.raises(ValueError, match=f"unknown sampler '{name}'; there are: {', '.join(NAMES)}"):
        samplers.make(name)


@every_sampler
def test_a_wrong_option_is_answered_by_the_options_there_are(name):
    options = ", ".join(inspect.signature(samplers.find(name)).parameters) or "none"
    with pytest.raises(ValueError, match=f"sampler {name} has no option 'nonsense'; it has: {options}"):
        samplers.make(name, nonsense=1)


def test_a_wrong_variance_is_answered_by_those_there_are(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="fixed_small, fixed_large"):
        samplers.make("ddpm", variance="learned")


def test_a_schedule_that_ends_in_pure_noise_can_be_walked():
    schedule = from_betas(squaredcos(20, max_beta=1.0))
    keys, xT = noise_and_keys(0, 4)
    x0 = sample(keys, make_denoiser(schedule, lambda xt, t: 0 * xt, "v"), ddpm(), grid_of(20, schedule=schedule), xT)
    assert jnp.all(jnp.isfinite(x0))
