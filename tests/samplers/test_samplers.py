"""What holds of every sampler: one program, one picture a key whatever the batch, the loop or the devices, names."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.analytic import mixture_x0
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, squaredcos
from ddpm_jax.samplers import initial_noise, sample, sample_in_chunks, sample_keys, step_noise
from ddpm_jax.samplers.ddpm import ddpm

NAMES = samplers.names()
SCHEDULE = from_betas(linear())
BATCH, SHAPE = 64, (12, 12, 1)
every_sampler = pytest.mark.parametrize("name", NAMES)


def grid_of(steps, spacing="trailing", schedule=SCHEDULE):
    return make_grid(schedule, spaced(schedule.timesteps, steps, spacing))


def convolution(kernel, xt, t):
    """A network that mixes the pixels of a picture, so that its rounding may depend on the batch."""
    return jax.lax.conv_general_dilated(xt, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


GAUSSIAN = make_denoiser(SCHEDULE, mixture_x0(SCHEDULE, jnp.full((1, *SHAPE), 0.3), 0.5), "x0", None)
KERNEL = 0.3 * jax.random.normal(jax.random.key(9), (3, 3, 1, 1))
CONVOLUTION = make_denoiser(SCHEDULE, Partial(convolution, KERNEL))


def noise_and_keys(seed, count=BATCH):
    keys = sample_keys(seed, jnp.arange(count))
    return keys, initial_noise(keys, SHAPE)


_step = jax.jit(lambda sampler, *arguments: sampler.step(*arguments))


@every_sampler
@pytest.mark.parametrize("steps", [1, 10])
def test_data_of_one_point_are_reached_exactly(name, steps):
    keys, xT = noise_and_keys(1, 4)
    point = jnp.broadcast_to(jnp.linspace(-0.9, 0.9, 144).reshape(1, *SHAPE), xT.shape)
    denoise = make_denoiser(SCHEDULE, lambda xt, t: point, "x0", None)
    np.testing.assert_allclose(sample(keys, denoise, samplers.make(name), grid_of(steps), xT), point, atol=1e-5)


@every_sampler
def test_the_last_step_adds_no_noise(name):
    sampler, row, (_, xt) = samplers.make(name), grid_of(10).row(9), noise_and_keys(4, 4)
    ends = [_step(sampler, noise_and_keys(seed, 4)[0], GAUSSIAN, xt, row, sampler.init(xt))[0] for seed in (5, 6)]
    np.testing.assert_array_equal(*ends)


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
        xt, memory = _step(sampler, keys, CONVOLUTION, xt, grid.row(i), memory)
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
    assert np.max(np.abs(pixels.mean(1))) < 5 / np.sqrt(pixels.shape[1])
    assert np.max(np.abs(pixels.std(1) - 1)) < 5 / np.sqrt(2 * pixels.shape[1])


@every_sampler
def test_a_picture_does_not_depend_on_the_batch(name):
    sampler, grid = samplers.make(name), grid_of(10)
    keys, xT = noise_and_keys(0)
    whole = sample(keys, CONVOLUTION, sampler, grid, xT)
    assert jnp.std(whole[0] - whole[1]) > 0.01
    for count in (1, 7):
        part = sample(keys[-count:], CONVOLUTION, sampler, grid, xT[-count:])
        np.testing.assert_allclose(part, whole[-count:], atol=0.5 / 255)


@pytest.mark.parametrize(("name", "devices"), [*((name, 8) for name in NAMES), ("ddpm", 2), ("unipc", 2)])
def test_a_picture_does_not_depend_on_the_devices(name, devices):
    keys, xT = noise_and_keys(0, 8)
    whole = sample(keys, CONVOLUTION, samplers.make(name), grid_of(10), xT)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    spread = jax.device_put(keys, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    noise = initial_noise(spread, SHAPE)
    np.testing.assert_array_equal(noise, xT)
    np.testing.assert_array_equal(
        step_noise(spread, grid_of(10).row(3), noise), step_noise(keys, grid_of(10).row(3), xT)
    )
    count = samplers._walk_jit._cache_size()
    *_, found = sample_in_chunks(spread, CONVOLUTION, samplers.make(name), grid_of(10), noise, 2)
    assert samplers._walk_jit._cache_size() == count + 1
    assert len(found.sharding.device_set) == devices
    np.testing.assert_allclose(found, whole, atol=0.5 / 255)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), ("pndm", {"runge_kutta": False})])
def test_a_walk_asks_the_denoiser_as_often_as_the_sampler_states(name, options):
    asked = []

    def network(xt, t):
        jax.debug.callback(asked.append, t[0])
        return 0.1 * xt

    keys, xT = noise_and_keys(0, 2)
    sampler, denoise = samplers.make(name, **options), make_denoiser(SCHEDULE, network)
    for steps in (1, 2, 3, 6):
        asked.clear()
        xt, memory, grid = xT, sampler.init(xT), grid_of(steps)
        for i in range(steps):
            xt, memory = _step(sampler, keys, denoise, xt, grid.row(i), memory)
        jax.effects_barrier()
        assert len(asked) == sampler.asks(steps)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unipc", {"order": 3.0}, "option order of sampler unipc must be 1 or 2 or 3, not 3.0"),
        ("unipc", {"corrector": "false"}, "option corrector of sampler unipc must be bool, not 'false'"),
        ("ddim", {"eta": "0.5"}, "option eta of sampler ddim must be float, not '0.5'"),
        ("ddim", {"eta": True}, "must be float, not True"),
        ("ddpm", {"clip_sample": "1"}, "must be float or NoneType, not '1'"),
    ],
)
def test_an_option_of_another_type_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        samplers.make(name, **options)


def test_an_option_may_be_any_number_where_it_is_one():
    assert [leaf for leaf in jax.tree.leaves(samplers.make("ddim", eta=1)) if isinstance(leaf, float)] == [1.0]
    samplers.make("ddpm", clip_sample=None)


def test_a_schedule_that_ends_in_pure_noise_can_be_walked():
    schedule = from_betas(squaredcos(20, max_beta=1.0))
    keys, xT = noise_and_keys(0, 4)
    x0 = sample(keys, make_denoiser(schedule, lambda xt, t: 0 * xt, "v"), ddpm(), grid_of(20, schedule=schedule), xT)
    assert jnp.all(jnp.isfinite(x0))
