"""Random draws: the same bits under every default of JAX, and no key used twice."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.editing import CURVED, IMAGES, KEYS, LEFT, SHAPE
from helpers.generation import HIDING
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE, grid_of

from ddpm_jax import draws, samplers
from ddpm_jax.diffusion.likelihood import bound_terms
from ddpm_jax.diffusion.losses import (
    draw_xt,
    lognormal_timesteps,
    simple_loss,
    uniform_timesteps,
    vlb_loss,
)
from ddpm_jax.evaluation.solver_statistics import statistics_batch
from ddpm_jax.generation.editing import Edit, add_noise
from ddpm_jax.models.initializers import InitDistribution, ParamSpec, draw_parameters
from ddpm_jax.models.layers import dropout
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise
from ddpm_jax.training.importance import LossHistory, draw_timesteps
from ddpm_jax.training.step import example_keys, hide_conditions, training_keys

HISTORY = LossHistory(jnp.linspace(0, 1, 30, dtype=jnp.float32), jnp.full(30, 20, jnp.int32))
SPECS = {
    kind: ParamSpec(jax.ShapeDtypeStruct((3, 2), jnp.float32), InitDistribution(kind, 0.5))
    for kind in ("uniform", "normal")
}
LABELS = jnp.arange(6, dtype=jnp.int32) % 3


def zero(xt, t):
    return jnp.zeros_like(xt)


def all_draws() -> dict:
    """Everything that the package draws from keys, by name."""
    init_key, step_key = training_keys(2**32 - 1)
    keys = example_keys(step_key, 3, jnp.arange(6))
    samples = sample_keys(2**31, jnp.arange(6))
    return {
        "parameters": draw_parameters(init_key, SPECS),
        "uniform t": uniform_timesteps(keys, SCHEDULE),
        "lognormal t": lognormal_timesteps(keys, SCHEDULE),
        "importance t": draw_timesteps(keys, HISTORY),
        "training noise": draw_xt(keys, SCHEDULE, IMAGES, LABELS)[1],
        "dropout": dropout(IMAGES, 0.5, keys),
        "labels": hide_conditions(keys, HIDING, LABELS),
        "initial noise": initial_noise(samples, SHAPE),
        "step noise": step_noise(samples, grid_of(4).row(2), IMAGES),
        "signs": statistics_batch(samples, zero, IMAGES).signs,
    }


@pytest.fixture(scope="module")
def expected():
    return jax.device_get(jax.jit(lambda: all_draws())())


DEFAULTS = {
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "x64": lambda: jax.enable_x64(True),
    "not partitionable": lambda: jax.threefry_partitionable(False),
}


@pytest.mark.parametrize("default", DEFAULTS)
def test_draws_have_the_same_bits_under_every_default_of_jax(default, expected):
    # A new function, because a compiled one would keep the default under which it was traced.
    with DEFAULTS[default]():
        drawn = jax.device_get(jax.jit(lambda: all_draws())())
    for name, value in expected.items():
        for ours, theirs in zip(jax.tree.leaves(drawn[name]), jax.tree.leaves(value), strict=True):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, name)


def test_fold_in_derives_the_keys_of_split():
    key = draws.make_key(5)
    derived = jnp.stack([draws.fold_in(key, i) for i in range(3)])
    assert bool(jnp.all(derived == jax.random.split(key, 3)))


def keys_of(implementation, n=4):
    key = jax.random.key(0, impl=implementation)
    return jnp.stack([jax.random.fold_in(key, i) for i in range(n)])


def test_keys_whose_noise_would_depend_on_the_batch_are_refused():
    refused = ("rbg", "unsafe_rbg")
    message = r'With \w*rbg keys the noise .* its batch: .*key\(seed, impl="threefry2x32"\)'
    cases = [(implementation, message) for implementation in refused]
    x0 = IMAGES[:4]
    assert_refused(lambda name: initial_noise(keys_of(name), SHAPE), cases)
    assert_refused(lambda name: simple_loss(keys_of(name), SCHEDULE, zero, x0), cases)
    assert_refused(lambda name: dropout(x0, 0.5, keys_of(name)), cases)
    one_key = lambda name: jax.random.key(0, impl=name)  # noqa: E731
    assert_refused(lambda name: example_keys(one_key(name), 0, jnp.arange(4)), cases)
    # One key has no batch.
    assert np.all(np.isfinite(draw_parameters(one_key("rbg"), SPECS)["normal"]))


def test_keys_of_another_implementation_draw_for_each_example_alone():
    keys = keys_of("philox4x32")
    noise = initial_noise(keys, SHAPE)
    np.testing.assert_array_equal(noise[2:], initial_noise(keys[2:], SHAPE))
    assert np.any(noise != initial_noise(keys_of("threefry2x32"), SHAPE))


def test_raw_keys_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"Keys of uint32 are not typed: make them with jax"):
        draws.normal(jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"Keys of uint32 are not typed: make them with jax"):
        example_keys(jax.random.PRNGKey(0), 0, jnp.arange(2))


def test_no_key_of_training_is_a_key_of_samples():
    of_training = {tuple(np.asarray(jax.random.key_data(key))) for key in training_keys(0)}
    of_samples = np.asarray(jax.random.key_data(sample_keys(0, jnp.arange(100))))
    assert not of_training & {tuple(row) for row in of_samples}


def test_no_key_is_consumed_twice():
    """JAX raises KeyReuseError then. Keys by `fold_in` are new ones to it, even equal ones."""
    grid = grid_of(4)
    ddpm = samplers.make("ddpm")
    edit = Edit(images=IMAGES, end_images=-IMAGES, fractions=jnp.linspace(0, 1, 6))
    with jax.debug_key_reuse(True):
        init_key, step_key = training_keys(0)
        draw_parameters(init_key, SPECS)
        keys = example_keys(step_key, 0, jnp.arange(6))
        hide_conditions(keys, HIDING, LABELS)
        t = lognormal_timesteps(keys, SCHEDULE)
        simple_loss(keys, SCHEDULE, zero, IMAGES, t=t)
        simple_loss(keys, SCHEDULE, zero, IMAGES)
        vlb_loss(keys, SCHEDULE, zero, IMAGES, variance="fixed_small")
        bound_terms(KEYS, SCHEDULE, CURVED, IMAGES, jnp.arange(2))
        xT = add_noise(KEYS, grid, IMAGES)
        edit.start(KEYS, CURVED, ddpm, grid, xT)
        Edit(fractions=edit.fractions).start(KEYS, CURVED, ddpm, grid, xT)
        sample(KEYS, CURVED, Edit(images=IMAGES, masks=LEFT).sampler(ddpm), grid, xT)
        statistics_batch(KEYS, zero, IMAGES)
