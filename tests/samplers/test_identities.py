"""Samplers that must be one another, on a network whose output is not linear in x; and what costs a compilation."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import make_grid, spaced
from ddpm_jax.diffusion.guidance import guide
from ddpm_jax.diffusion.prediction import make_denoiser
from ddpm_jax.diffusion.schedule import from_betas, linear, per_example
from ddpm_jax.samplers import initial_noise, sample, sample_keys

SCHEDULE = from_betas(linear())
KEYS = sample_keys(0, jnp.arange(8))
XT = initial_noise(KEYS, (3, 3, 1))


def network(weight, xt, t, labels=None):
    shift = 0.0 if labels is None else per_example(labels, xt).astype(jnp.float32) / 10
    return weight * xt + 0.3 * jnp.sin(3 * xt + per_example(t, xt).astype(jnp.float32) / 300) + shift


NETWORK = Partial(network, jnp.float32(0.8))
UNCLIPPED, CLIPPED = (make_denoiser(SCHEDULE, NETWORK, "eps", clip_x0) for clip_x0 in (None, 1.0))


def draw(name, denoise=CLIPPED, *, steps=20, spacing="trailing", keys=KEYS, **options):
    grid = make_grid(SCHEDULE, spaced(1000, steps, spacing))
    return sample(keys, denoise, samplers.make(name, **options), grid, XT)


@pytest.mark.parametrize("denoise", [CLIPPED, UNCLIPPED], ids=["clipped", "unclipped"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ddim", {"eta": 1.0}), ("ddpm", {})),
        (("euler", {}), ("ddim", {})),
        (("euler_ancestral", {"eta": 0.0}), ("euler", {})),
        (("euler_ancestral", {"eta": 0.6}), ("ddim", {"eta": 0.6})),
        (("edm", {}), ("heun", {})),
        (("lms", {"order": 1}), ("euler", {})),
        (("deis", {"order": 1}), ("euler", {})),
        (("unipc", {"order": 1, "corrector": False}), ("ddim", {})),
        (("unipc", {"order": 2, "corrector": False}), ("dpmpp_2m", {})),
    ],
    ids=lambda case: " ".join(map(str, [case[0], *case[1].values()])),
)
def test_one_sampler_is_another(denoise, one, other):
    found, wanted = (draw(name, denoise, **options) for name, options in (one, other))
    scale = float(jnp.max(jnp.abs(wanted)))
    np.testing.assert_allclose(found / scale, wanted / scale, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in samplers.names() if samplers.make(name).order), ("euler_ancestral", {"eta": 0.0})],
)
def test_a_sampler_without_noise_ignores_the_key(name, options):
    np.testing.assert_array_equal(draw(name, **options), draw(name, keys=sample_keys(1, jnp.arange(8)), **options))


def test_the_first_step_of_the_sde_solver_is_ancestral():
    row = make_grid(SCHEDULE, spaced(1000, 10)).row(3)
    steps = []
    for name in ("ddpm", "dpmpp_2m_sde"):
        sampler = samplers.make(name)
        steps.append(sampler.step(KEYS, UNCLIPPED, XT, row, sampler.init(XT))[0])
    np.testing.assert_allclose(*steps, atol=1e-5)


def test_a_guidance_scale_of_1_is_none():
    labels = jnp.arange(8) % 3
    plain, guided = (
        draw("ddim", make_denoiser(SCHEDULE, net))
        for net in (Partial(network, jnp.float32(0.8), labels=labels), guide(NETWORK, labels, 1.0))
    )
    np.testing.assert_allclose(guided, plain, atol=1e-5)
    assert jnp.max(jnp.abs(draw("ddim", make_denoiser(SCHEDULE, guide(NETWORK, labels, 3.0))) - plain)) > 0.01


def test_compat_differs_from_ddim_only_where_x0_is_clipped():
    kept = make_denoiser(SCHEDULE, NETWORK, "eps", 1.0, keep_eps=True)
    np.testing.assert_array_equal(draw("ddim", UNCLIPPED), draw("ddim", UNCLIPPED, compat=True))
    assert jnp.max(jnp.abs(draw("ddim", CLIPPED) - draw("ddim", kept, compat=True))) > 0.01


@pytest.mark.parametrize("name", samplers.names())
def test_seed_scale_interval_and_thresholds_share_one_program(name):
    labels = jnp.arange(8) % 3

    def run(seed, scale, interval, rescale, threshold):
        guided = guide(NETWORK, labels + seed, scale, interval=interval, rescale=rescale)
        denoise = make_denoiser(SCHEDULE, guided, dynamic_threshold=threshold)
        return draw(name, denoise, steps=4, keys=sample_keys(seed, jnp.arange(8)))

    first = run(0, 2.0, (0.0, 900.0), 0.5, 0.9)
    count = samplers._walk_jit._cache_size()
    for changed in (
        (1, 2.0, (0.0, 900.0), 0.5, 0.9),
        (0, 3.0, (0.0, 900.0), 0.5, 0.9),
        (0, 2.0, (300.0, 700.0), 0.2, 0.6),
    ):
        assert jnp.max(jnp.abs(run(*changed) - first)) > 1e-4
    assert samplers._walk_jit._cache_size() == count
    draw(name, UNCLIPPED, steps=5)
    assert samplers._walk_jit._cache_size() == count + 1
