"""`ddpm_jax.samplers`: names and options, the noise of each image, and one compiled scan."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.meshes import EXPLICIT, ROWS, split
from helpers.refusals import assert_refused
from helpers.samplers import MEANS, SCHEDULE, SHAPE, grid_of, mixture, naive_walk, rows_of
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, per_example, squaredcos_betas
from ddpm_jax.samplers import initial_noise, sample, sample_in_chunks, sample_keys, step_noise

NAMES = samplers.names()
MIXTURE = mixture()


def keys_and_noise(seed, n=4):
    keys = sample_keys(seed, jnp.arange(n))
    return keys, initial_noise(keys, SHAPE)


def shard_over(num_devices, keys):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    return jax.device_put(keys, jax.sharding.NamedSharding(mesh, jax.P("data")))


# Names and options


def test_a_sampler_is_found_by_the_name_of_its_module():
    assert "ddpm" in NAMES
    for name in NAMES:
        function = samplers.factory(name)
        assert (function.__module__, function.__name__) == (f"ddpm_jax.samplers.{name}", name)
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert kinds <= {inspect.Parameter.KEYWORD_ONLY}, name


@pytest.mark.parametrize("name", ["nonsense", "DDPM", "__init__", ""])
def test_the_error_for_an_unknown_sampler_lists_the_valid_names(name):
    message = f"Unknown sampler '{name}': choose one of {', '.join(NAMES)}"
    with pytest.raises(ValueError, match=message):
        samplers.make(name)


def test_the_error_for_an_unknown_option_lists_the_valid_options():
    for name in NAMES:
        options = ", ".join(inspect.signature(samplers.factory(name)).parameters) or "none"
        message = f"Sampler {name} has no option 'nonsense'; it has: {options}"
        with pytest.raises(ValueError, match=message):
            samplers.make(name, nonsense=1)


WRONG_VALUES = [
    ("ddpm", {"variance": "some"}, "Unknown variance 'some': choose one of fixed_small, fixed"),
    ("ddim", {"eta": -0.1}, "Sampler option eta must be at least 0, not -0.1"),
    ("euler_ancestral", {"eta": -0.1}, "eta must be at least 0, not -0.1"),
    ("edm", {"S_churn": -1.0}, "S_churn must be at least 0, not -1.0"),
    ("edm", {"S_noise": -1.0}, "S_noise must be at least 0, not -1.0"),
    ("deis", {"order": 4}, "order must be 1, 2 or 3, not 4"),
    ("lms", {"order": 5}, "order must be 1, 2, 3 or 4, not 5"),
    ("unipc", {"order": 0}, "order must be 1, 2 or 3, not 0"),
    ("unipc", {"B": "bh3"}, "B must be bh1 or bh2, not bh3"),
    ("pndm", {"average": "x0"}, "average must be eps or v, not x0"),
    ("dpm_solver_v3", {"order": 4}, "order must be 1, 2 or 3, not 4"),
    ("unipc", {"order": 2.0}, "Sampler option order must be an integer, not 2.0"),
    ("ddim", {"eta": "0.5"}, "Sampler option eta must be a number, not '0.5'"),
    ("ddim", {"eta": None}, "Sampler option eta must be a number, not None"),
    ("dpmpp_2m", {"compat": "false"}, "compat must be True or False, not 'false'"),
]


def test_an_invalid_option_value_is_refused(monkeypatch):
    # The type check that is on in tests would refuse most of them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, options, message in WRONG_VALUES:
        with pytest.raises(ValueError, match=message):
            samplers.make(name, **options)


def test_a_file_of_statistics_may_be_a_path(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        samplers.make("dpm_solver_v3", statistics=Path("nowhere.npz"))


def test_a_start_of_another_type_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    keys, xT = keys_and_noise(0, 2)

    def draw(dtype):
        return sample(keys, MIXTURE, samplers.make("ddim"), grid_of(5), xT.astype(dtype))

    assert_refused(draw, [(dtype, "xT must be float32") for dtype in (jnp.bfloat16, jnp.uint8)])


@pytest.mark.parametrize(
    ("name", "option"), [("ddim", "eta"), ("euler_ancestral", "eta"), ("edm", "S_churn")]
)
def test_a_sampler_can_be_made_of_a_traced_option(monkeypatch, name, option):
    # The type check that is on in tests would refuse a traced number.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    keys, xT = keys_and_noise(0, 2)

    def draw(value):
        return sample(keys, MIXTURE, samplers.make(name, **{option: value}), grid_of(5), xT)

    both = jax.vmap(draw)(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(both[1], draw(0.5), atol=1e-5)


def test_an_int_is_accepted_for_a_float_option():
    leaves = jax.tree.leaves(samplers.make("ddim", eta=1))
    assert [leaf for leaf in leaves if isinstance(leaf, float)] == [1.0]


def test_check_options_does_not_open_the_file_that_an_option_names():
    samplers.check_options("dpm_solver_v3", {"statistics": "no.npz", "order": 2})
    with pytest.raises(FileNotFoundError, match=r"no\.npz does not exist"):
        samplers.make("dpm_solver_v3", statistics="no.npz")
    with pytest.raises(ValueError, match="has no option 'nonsense'"):
        samplers.check_options("dpm_solver_v3", {"statistics": "no.npz", "nonsense": 2})


# Noise


def test_noise_depends_on_seed_sample_and_step_alone():
    n = 64
    shape = (12, 12, 1)
    rows = list(rows_of(grid_of(10)))[:3]

    @jax.jit
    def first_and_step(keys, row):
        xt = initial_noise(keys, shape)
        return xt, step_noise(keys, row, xt)

    def draw(keys):
        pairs = [first_and_step(keys, row) for row in rows]
        return pairs[0][0], *(noise for _, noise in pairs)

    keys = sample_keys(0, jnp.arange(n))
    whole = np.stack(draw(keys))  # (4, n, h, w, c)
    for part in (slice(0, 7), slice(5, 12)):
        noise = draw(sample_keys(0, jnp.arange(n)[part]))
        np.testing.assert_array_equal(np.stack(noise), whole[:, part])
    np.testing.assert_array_equal(np.stack(draw(shard_over(8, keys))), whole)
    other_seed = draw(sample_keys(1, jnp.arange(n)))[0]
    pixels = np.stack([*whole, other_seed]).reshape(5 * n, -1)
    correlations = np.corrcoef(pixels) - np.eye(len(pixels))
    assert np.max(np.abs(correlations)) < 6.5 / np.sqrt(pixels.shape[1])
    assert np.max(np.abs(pixels.mean(1))) < 5 / np.sqrt(pixels.shape[1])
    assert np.max(np.abs(pixels.std(1) - 1)) < 5 / np.sqrt(2 * pixels.shape[1])


# One scan


def test_scan_trajectory_and_chunks_match_the_naive_loop_over_part_of_the_batch():
    sampler = samplers.make("dpmpp_2m_sde")  # It has a state, and adds noise.
    grid = grid_of(10)
    keys, xT = keys_and_noise(8, 8)
    walk = keys, MIXTURE, sampler, grid, xT
    states = np.asarray(sample(*walk, trajectory=True))
    assert states.shape == (11, *xT.shape)
    np.testing.assert_array_equal(states[0], xT)
    for i, xt in enumerate(naive_walk(sampler, keys[-3:], MIXTURE, grid, xT[-3:])):
        np.testing.assert_allclose(states[i + 1, -3:], xt, atol=1e-5, err_msg=f"row {i}")
    x0 = sample(*walk)
    np.testing.assert_allclose(x0, states[-1], atol=1e-5)
    np.testing.assert_array_equal(next(sample_in_chunks(*walk)), x0)
    for state, expected in zip(sample_in_chunks(*walk, 5), states[2::2], strict=True):
        np.testing.assert_allclose(state, expected, atol=1e-5)


def test_chunks_over_devices_share_one_program_and_change_no_image():
    devices = 4
    sampler = samplers.make("dpmpp_2m_sde")
    grid = grid_of(10)
    keys, xT = keys_and_noise(8, 8)
    sharded = shard_over(devices, keys)
    num_programs = samplers._walk_jit._cache_size()
    *_, x0 = sample_in_chunks(sharded, MIXTURE, sampler, grid, initial_noise(sharded, SHAPE), 2)
    assert samplers._walk_jit._cache_size() == num_programs + 1
    assert len(x0.sharding.device_set) == devices
    *_, expected = naive_walk(sampler, keys[-3:], MIXTURE, grid, xT[-3:])
    np.testing.assert_allclose(np.asarray(x0)[-3:], expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [-1, 0, 3, 20])
def test_chunks_that_do_not_divide_the_steps_are_refused(chunks):
    keys, xT = keys_and_noise(0)
    with pytest.raises(ValueError, match=f"Cannot split 10 steps into {chunks} equal chunks"):
        next(sample_in_chunks(keys, MIXTURE, samplers.make("ddpm"), grid_of(10), xT, chunks))


def test_a_denoiser_may_be_any_function():
    keys, xT = keys_and_noise(0)
    walk = samplers.make("heun"), grid_of(10)
    *_, x0 = naive_walk(walk[0], keys, MIXTURE, walk[1], xT)

    def denoise(xt, t):
        return MIXTURE(xt, t)

    np.testing.assert_allclose(sample(keys, denoise, *walk, xT), x0, atol=1e-5)
    np.testing.assert_allclose(next(sample_in_chunks(keys, denoise, *walk, xT)), x0, atol=1e-5)


def labelled_network(weight, xt, t, labels):
    labels, t = (per_example(each, xt).astype(jnp.float32) for each in (labels, t))
    return weight * xt * (1 + labels / 10) + 0.3 * jnp.sin(3 * xt + t / 300)


def test_parameters_guidance_and_thresholds_share_one_program():
    """Parameters, seed, labels, scale, interval, rescale and threshold are traced."""
    labels = jnp.arange(4) % 3
    sampler = samplers.make("ddim")
    grid = grid_of(4)

    def run(seed=0, weight=0.8, label=0, scale=2.0, low=0.0, rescale=0.5, threshold=0.9):
        network = Partial(labelled_network, jnp.float32(weight))
        options = {"interval": (low, low + 600.0), "rescale": rescale}
        guided = guide(network, labels + label, labels - 9, scale, **options)
        denoise = make_denoiser(SCHEDULE, guided, dynamic_threshold=threshold)
        keys, xT = keys_and_noise(seed)
        return sample(keys, denoise, sampler, grid, xT)

    first = run()
    num_programs = samplers._walk_jit._cache_size()
    changes = {"seed": 1, "weight": 0.6, "label": 1, "scale": 3.0, "low": 400.0, "rescale": 0.2}
    for name, value in (changes | {"threshold": 0.6}).items():
        assert np.max(np.abs(run(**{name: value}) - first)) > 1e-4, name
    assert samplers._walk_jit._cache_size() == num_programs
    # A denoiser of another structure compiles again.
    keys, xT = keys_and_noise(0)
    sample(keys, mixture(-MEANS), sampler, grid, xT)
    assert samplers._walk_jit._cache_size() == num_programs + 1


def test_a_walk_from_pure_noise_is_finite_for_an_untrained_network():
    schedule = from_betas(squaredcos_betas(20, max_beta=1.0))
    keys, xT = keys_and_noise(0)
    denoise = make_denoiser(schedule, lambda xt, t: 0 * xt, "v")
    x0 = sample(keys, denoise, samplers.make("ddpm"), grid_of(20, schedule=schedule), xT)
    assert np.all(np.isfinite(x0))


@pytest.mark.parametrize("name", NAMES)
def test_samples_keep_explicit_sharding(name):
    keys, xT = split(EXPLICIT, keys_and_noise(0))
    out = jax.eval_shape(
        lambda keys, xT: sample(keys, MIXTURE, samplers.make(name), grid_of(6), xT), keys, xT
    )
    assert out.sharding.spec[0] == "data"
    per_shard = jax.shard_map(
        lambda keys, xT: sample(keys, MIXTURE, samplers.make(name), grid_of(6), xT),
        mesh=EXPLICIT,
        in_specs=ROWS,
        out_specs=ROWS,
    )
    assert jax.eval_shape(per_shard, keys, xT) == out


def test_noise_under_x64_is_the_same_float32():
    draw = jax.jit(lambda: initial_noise(sample_keys(0, jnp.arange(2)), SHAPE))
    expected = draw()
    with jax.enable_x64(True):
        ours = draw()
    np.testing.assert_array_equal(ours, expected, strict=True)


def test_arguments_of_another_kind_are_refused(monkeypatch):
    """Three images of a network would be taken for x0, eps and the variance."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    keys, xT = keys_and_noise(0, 3)
    good = {"denoise": MIXTURE, "sampler": samplers.make("ddim"), "grid": grid_of(5)}
    cases = [
        ({"denoise": lambda xt, t: xt}, "The denoiser must return a Prediction: make one"),
        ({"sampler": samplers.factory("ddim")}, "must be a Sampler, not a .*: call its function"),
        ({"sampler": "ddim"}, "must be a Sampler, not a str"),
        ({"grid": np.arange(5)}, "The grid must be one of make_grid, not a ndarray"),
        ({"keys": jax.random.split(jax.random.PRNGKey(0), 3)}, "Keys of uint32 are not typed"),
        ({"xT": xT[None]}, r"xT must be images \(b, h, w, c\), not of shape \(1, 3, "),
    ]
    assert_refused(lambda other: sample(**{"keys": keys, "xT": xT} | good | other), cases)
    indices = [
        (8, r"indices must be integers \(b,\), not int32 of shape \(\)"),
        ([0.5], "not float32 of shape"),
    ]
    assert_refused(lambda given: samplers.sample_keys(0, given), indices)
    given = samplers.sample_keys(0, [0, 1])
    assert jnp.all(given == samplers.sample_keys(0, jnp.arange(2)))


def test_a_sampler_may_consist_of_plain_functions():
    def step(keys, denoise, xt, row, state):
        return denoise(xt, row.t).x0, state

    keys, xT = keys_and_noise(0, 2)
    by_functions = samplers.Sampler(lambda xT: (), step)
    x0 = sample(keys, MIXTURE, by_functions, grid_of(2), xT)
    by_partials = samplers.Sampler(Partial(samplers.stateless_init), Partial(step))
    np.testing.assert_array_equal(x0, sample(keys, MIXTURE, by_partials, grid_of(2), xT))


def test_a_key_per_image_and_a_seed_of_32_bits_are_required(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    keys, xT = keys_and_noise(0)
    walk = MIXTURE, samplers.make("ddpm"), grid_of(4), xT
    cases = [(keys[:1], r"keys must have shape \(4,\) to match the batch, not \(1,\)")]
    assert_refused(lambda keys: sample(keys, *walk), cases)
    assert_refused(lambda keys: next(sample_in_chunks(keys, *walk)), cases)
    cases = [(seed, r"seed must be in \[0, 2\*\*32\)") for seed in (-1, 2**32)]
    assert_refused(lambda seed: sample_keys(seed, jnp.arange(2)), cases)
