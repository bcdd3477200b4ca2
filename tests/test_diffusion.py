"""The DDPM objective: its settings, and that loss and walk are those of the parts it names."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.diffusion import Diffusion, Sampling
from ddpm_jax.grids import make_grid, spaced
from ddpm_jax.losses import simple_loss
from ddpm_jax.schedule import BETAS, from_betas, q_sample, zero_terminal_snr

SHAPE = (4, 4, 1)
SMALL = Diffusion(timesteps=20, beta_start=0.01, beta_end=0.6)
KEYS = samplers.sample_keys(0, jnp.arange(3))


def network(xt, t):
    return 0.5 * jnp.tanh(xt)


def tables_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, tuple(vars(a).values()), tuple(vars(b).values()))


@pytest.mark.parametrize("name", BETAS)
def test_the_schedule_is_the_named_one(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scaled_linear never reaches noise within 200 of these betas
        found = Diffusion(schedule=name, timesteps=200, beta_start=0.001, beta_end=0.05).noise_schedule()
        ends = () if name == "squaredcos" else (0.001, 0.05)
        tables_equal(found, from_betas(BETAS[name](200, *ends)))


def test_the_default_is_that_of_ho_et_al():
    assert Diffusion().target == "eps"
    tables_equal(Diffusion().noise_schedule(), from_betas(np.linspace(1e-4, 0.02, 1000)))


def test_zero_terminal_snr_is_applied():
    found = Diffusion(zero_terminal_snr=True, target="v").noise_schedule()
    tables_equal(found, from_betas(zero_terminal_snr(BETAS["linear"]())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 0}, "timesteps must be at least 1, not 0"),
        ({"beta_start": 0.0}, "0 < start <= end < 1, not 0.0 and 0.02"),
        ({"beta_start": 0.03}, "0 < start <= end < 1, not 0.03 and 0.02"),
        ({"beta_end": 1.0}, "0 < start <= end < 1, not 0.0001 and 1.0"),
        ({"zero_terminal_snr": True}, "use target x0 or v"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "nonsense"}, "unknown sampler 'nonsense'; there are: .*ddpm"),
        ({"options": {"nonsense": 1.0}}, "sampler ddpm has no option 'nonsense'; it has: variance, clip_sample"),
    ],
)
def test_a_wrong_sampler_is_refused_before_anything_runs(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize("steps", [-1, 0, 21])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's T = 20"):
        SMALL.steps(Sampling(steps=steps))


def test_steps_are_all_timesteps_unless_said():
    assert [SMALL.steps(Sampling(steps=steps)) for steps in (None, 1, 20)] == [20, 1, 20]


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_the_loss_is_l_simple_for_the_target(target):
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1)
    found = Diffusion(target=target).loss(KEYS, network, images)
    np.testing.assert_array_equal(found, simple_loss(KEYS, Diffusion().noise_schedule(), network, images, target))
    other = {"eps": "x0", "x0": "v", "v": "eps"}[target]
    assert jnp.all(found != Diffusion(target=other).loss(KEYS, network, images))


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_the_walk_is_that_of_its_sampler_and_grid(spacing):
    sampling = Sampling(steps=4, spacing=spacing, options={"variance": "fixed_large"})
    schedule = SMALL.noise_schedule()
    states = list(SMALL.walk(KEYS, network, SHAPE, sampling, 2))
    assert len(states) == 3
    np.testing.assert_array_equal(states[0], samplers.initial_noise(KEYS, SHAPE))
    grid = make_grid(schedule, spaced(20, 4, spacing))
    sampler = samplers.make("ddpm", variance="fixed_large")
    wanted = samplers.sample(KEYS, SMALL.denoiser(network, sampling), sampler, grid, states[0], trajectory=True)
    for i in (1, 2):
        np.testing.assert_allclose(states[i], wanted[2 * i], atol=1e-5)


def test_the_walk_takes_all_steps_unless_said():
    first = next(iter(SMALL.walk(KEYS, network, SHAPE, Sampling(), 20)))
    assert first.shape == (3, *SHAPE)
    assert len(list(SMALL.walk(KEYS, network, SHAPE, Sampling(), 20))) == 21


def test_chunks_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ValueError, match="4 steps do not divide into 3 equal chunks"):
        list(SMALL.walk(KEYS, network, SHAPE, Sampling(steps=4), 3))


@pytest.mark.parametrize(("clip_x0", "limit"), [(True, 1.0), (False, 9.0)])
def test_the_denoiser_is_for_the_target_and_clips_if_told(clip_x0, limit):
    diffusion = Diffusion(target="x0")
    xt = jnp.zeros((3, *SHAPE))
    found = diffusion.denoiser(lambda xt, t: xt + 9, Sampling(clip_x0=clip_x0))(xt, jnp.array(10))
    np.testing.assert_array_equal(found.x0, jnp.full_like(xt, limit))


def test_samples_of_one_point_are_that_point():
    *_, x0 = Diffusion(target="x0").walk(KEYS, lambda xt, t: 0 * xt + 0.25, SHAPE, Sampling(steps=5), 1)
    np.testing.assert_allclose(x0, 0.25, atol=1e-6)


def test_noisy_shows_every_noise_level_and_predict_undoes_it():
    images = jax.random.uniform(jax.random.key(1), (5, *SHAPE), minval=-1)
    keys = samplers.sample_keys(0, jnp.arange(5))
    xt, t = Diffusion(target="x0").noisy(keys, images)
    assert (t[0], t[-1]) == (0, 999)
    assert jnp.ptp(jnp.diff(t)) <= 1
    noise = samplers.initial_noise(keys, SHAPE)
    np.testing.assert_array_equal(xt, q_sample(Diffusion().noise_schedule(), images, t, noise))
    for target, output in (("x0", images), ("eps", noise)):
        x0 = Diffusion(target=target).predict(lambda xt, t, output=output: output, xt, t)
        np.testing.assert_allclose(x0, images, atol=1e-3)
