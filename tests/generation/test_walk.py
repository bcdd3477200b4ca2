"""The DDPM objective: its settings, and that loss and walk are those of the parts it names."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import CLEAN, make_grid, spaced
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import q_sample
from ddpm_jax.generation.editing import Edit, last_part, noised
from ddpm_jax.generation.sampling import Sampling

SHAPE = (4, 4, 1)
SMALL = Objective(timesteps=20, beta_start=0.01, beta_end=0.6)
KEYS = samplers.sample_keys(0, jnp.arange(3))


def network(xt, t):
    return 0.5 * jnp.tanh(xt)


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
    diffusion = Objective(target="x0")
    xt = jnp.zeros((3, *SHAPE))
    found = diffusion.denoiser(lambda xt, t: xt + 9, Sampling(clip_x0=clip_x0))(xt, jnp.array(10))
    np.testing.assert_array_equal(found.x0, jnp.full_like(xt, limit))


def test_samples_of_one_point_are_that_point():
    *_, x0 = Objective(target="x0").walk(KEYS, lambda xt, t: 0 * xt + 0.25, SHAPE, Sampling(steps=5), 1)
    np.testing.assert_allclose(x0, 0.25, atol=1e-6)


def test_noisy_shows_every_noise_level_and_predict_undoes_it():
    images = jax.random.uniform(jax.random.key(1), (5, *SHAPE), minval=-1)
    keys = samplers.sample_keys(0, jnp.arange(5))
    xt, t = Objective(target="x0").noisy(keys, images)
    assert (t[0], t[-1]) == (0, 999)
    assert jnp.ptp(jnp.diff(t)) <= 1
    noise = samplers.initial_noise(keys, SHAPE)
    np.testing.assert_array_equal(xt, q_sample(Objective().noise_schedule(), images, t, noise))
    for target, output in (("x0", images), ("eps", noise)):
        x0 = Objective(target=target).predict(lambda xt, t, output=output: output, xt, t)
        np.testing.assert_allclose(x0, images, atol=1e-3)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_timesteps_placed_by_noise_may_be_any_number(spacing):
    for steps in (1, 5, 50):
        sampling = Sampling(steps=steps, spacing=spacing)
        assert SMALL.steps(sampling) == len(SMALL.grid(sampling).i) == steps
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        SMALL.steps(Sampling(steps=0, spacing=spacing))


def test_timesteps_may_be_given_themselves():
    sampling = Sampling(timesteps=(19.0, 10.0, 4.0))
    assert SMALL.grid(sampling).t.tolist() == [19, 10, 4]
    assert jnp.issubdtype(SMALL.grid(sampling).t.dtype, jnp.integer)
    np.testing.assert_allclose(SMALL.grid(Sampling(timesteps=(18.5, 10.0))).t, [18.5, 10.0])
    assert SMALL.steps(sampling) == 3
    for wrong in ((10.0, 19.0), (20.0, 3.0), (5.0, 5.0), (3.0, -1.0)):
        with pytest.raises(ValueError, match=r"timesteps must fall strictly within 0\.\.19"):
            SMALL.steps(Sampling(timesteps=wrong))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale must not be negative, not -1.0"),
        ({"guidance_interval": (9.0, 3.0)}, "guidance_interval must rise, not 9.0 3.0"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale must be in \[0, 1\], not 1.5"),
        ({"guidance_rescale": -0.5}, r"guidance_rescale must be in \[0, 1\], not -0.5"),
        ({"guidance_interval": (3.0, 9.0)}, "are for guidance: set guidance_scale too, or leave them out"),
        ({"dynamic_threshold": 0.0}, "dynamic_threshold must be above 0 and at most 1, not 0.0"),
        ({"timesteps": (9.0, 3.0), "steps": 2}, "give steps or timesteps, not both"),
        ({"timesteps": (9.0, 3.0), "spacing": "karras"}, "give spacing or timesteps, not both"),
    ],
)
def test_wrong_settings_of_sampling_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"options": {"variance": "learned_range"}}, "was not trained to say variance learned_range: use fixed_small"),
        ({"guidance_scale": 2.0, "guidance_interval": (20.0, 30.0)}, r"holds none of the timesteps 0\.\.19"),
    ],
)
def test_sampling_that_does_not_fit_the_objective_is_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        SMALL.steps(Sampling(**sampling))


def test_a_learned_variance_is_drawn_with():
    learned = Objective(timesteps=20, variance="learned", bound="hybrid")
    assert learned.resolved(Sampling()).options == {"variance": "learned"}
    assert learned.resolved(Sampling(options={"variance": "fixed_small"})).options == {"variance": "fixed_small"}
    assert learned.resolved(Sampling(sampler="ddim")).options == SMALL.resolved(Sampling()).options == {}
    assert learned.steps(learned.resolved(Sampling())) == 20
    with pytest.raises(ValueError, match="variance learned is that of one timestep: take all 20 steps, not 10"):
        learned.steps(learned.resolved(Sampling(steps=10)))


def test_compat_walks_the_grid_of_diffusers():
    sampling = Sampling(sampler="unipc", options={"compat": True}, steps=3, spacing="leading")
    grid = SMALL.grid(sampling)
    assert (grid.t.tolist(), grid.t_next.tolist()) == ([15, 10, 5], [10, 5, CLEAN])
    assert SMALL.grid(dataclasses.replace(sampling, options={})).t.tolist() == [12, 6, 0]


def test_a_setting_takes_the_place_of_those_that_go_with_another():
    leading = Sampling(sampler="pndm", options={"compat": True}, steps=5, spacing="leading", offset=1)
    assert leading.changed(spacing="trailing") == Sampling(sampler="pndm", options={"compat": True}, steps=5)
    given = leading.changed(timesteps=(9.0, 3.0))
    assert (given.timesteps, given.steps, given.spacing, given.offset) == ((9.0, 3.0), None, "trailing", 0)
    assert given.changed(steps=4).timesteps is None
    assert leading.changed(sampler="ddim").options == {}
    assert leading.changed(steps=4) == dataclasses.replace(leading, steps=4)


@pytest.mark.parametrize("options", [{}, {"compat": True}])
def test_leading_timesteps_are_raised_by_the_offset(options):
    plain = Sampling(sampler="ddim", options=options, steps=4, spacing="leading")
    grid, raised = (SMALL.grid(dataclasses.replace(plain, offset=offset)) for offset in (0, 2))
    assert raised.t.tolist() == [t + 2 for t in grid.t.tolist()] == [17, 12, 7, 2]
    assert int(raised.t_next[-1]) == CLEAN
    with pytest.raises(ValueError, match=r"timesteps must fall strictly within 0..19"):
        SMALL.grid(dataclasses.replace(plain, offset=5))


@pytest.mark.parametrize("sampling", [{}, {"options": {"compat": True}}, {"timesteps": (19.0, 9.0)}])
def test_a_walk_ends_where_it_is_told(sampling):
    ends = [SMALL.grid(Sampling(sampler="ddim", **sampling, end=end)).t_next[-1] for end in (None, "clean", "lowest")]
    assert [int(end) for end in ends] == [CLEAN, CLEAN, 0]
    own = Sampling(sampler="pndm", options={"compat": True}, steps=5)
    assert [int(SMALL.grid(dataclasses.replace(own, end=end)).t_next[-1]) for end in (None, "clean")] == [0, CLEAN]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offset": -1, "spacing": "leading"}, "offset must not be negative"),
        ({"offset": 1}, "is for spacing leading, not 1 with trailing"),
        ({"end": "nowhere"}, "end must be clean or lowest"),
        ({"threshold_limit": 2.0}, "with a dynamic_threshold"),
        ({"threshold_limit": 0.5, "dynamic_threshold": 0.9}, "threshold_limit must be at least 1"),
    ],
)
def test_what_only_diffusers_needs_is_checked_too(settings, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(("spacing", "scaled"), [("leading", False), ("trailing", True), ("karras", True)])
def test_methods_in_sigma_start_from_the_noise_alone_as_in_diffusers(spacing, scaled):
    """They start at sigma eps, which is sqrt(1 - alpha_bar) eps in our scale."""
    sampling = Sampling(sampler="euler", options={"compat": True}, steps=4, spacing=spacing)
    first = next(SMALL.walk(KEYS, network, SHAPE, sampling, 1))
    scale = SMALL.grid(sampling).sqrt_one_minus_alpha_bar[0] if scaled else 1.0
    assert scale < 0.9999 or not scaled
    np.testing.assert_allclose(first, scale * samplers.initial_noise(KEYS, SHAPE), rtol=1e-6)


def test_with_the_walk_inner_the_network_is_asked_at_whole_timesteps():
    asked = lambda xt, t: 0 * xt + t.astype(xt.dtype).reshape(-1, 1, 1, 1)  # noqa: E731
    for options, seen in (({}, 3.4), ({"compat": True}, 3.0)):
        denoise = SMALL.denoiser(asked, Sampling(sampler="unipc", options=options, steps=4, clip_x0=False))
        np.testing.assert_allclose(denoise(jnp.zeros((3, *SHAPE)), jnp.array(3.4)).eps, seen, rtol=1e-5)


def test_a_dynamic_threshold_takes_the_place_of_the_clip():
    xt = jnp.broadcast_to(jnp.linspace(0, 4, 16).reshape(1, *SHAPE), (3, *SHAPE))
    diffusion = Objective(target="x0")
    found = diffusion.denoiser(lambda xt, t: xt, Sampling(dynamic_threshold=1.0))(xt, jnp.array(10))
    np.testing.assert_allclose(found.x0, xt / 4, atol=1e-6)
    limited = Sampling(dynamic_threshold=1.0, threshold_limit=2.0)
    found = diffusion.denoiser(lambda xt, t: xt, limited)(xt, jnp.array(10))
    np.testing.assert_allclose(found.x0, jnp.minimum(xt, 2) / 2, atol=1e-6)


def test_an_edited_walk_starts_and_ends_as_the_edit_says():
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1)
    edit = Edit(images=images, strength=0.5)
    sampling = Sampling(steps=8)
    grid = SMALL.grid(sampling, edit)
    assert SMALL.steps(sampling, edit) == len(grid.i) == 4
    states = list(SMALL.walk(KEYS, network, SHAPE, sampling, 2, edit))
    np.testing.assert_array_equal(states[0], noised(KEYS, last_part(SMALL.grid(sampling), 0.5), images))
    wanted = samplers.sample(KEYS, SMALL.denoiser(network, sampling), samplers.make("ddpm"), grid, states[0])
    np.testing.assert_allclose(states[2], wanted, atol=1e-5)
    masked = Edit(images=images, masks=images > 0, repeats=2, jump=3)
    *_, x0 = SMALL.walk(KEYS, network, SHAPE, sampling, 1, masked)
    np.testing.assert_array_equal(jnp.where(images > 0, 0, x0), jnp.where(images > 0, 0, images))
    assert jnp.any((images > 0) & (x0 != images))
