"""L_simple matches its formula and known limits; timesteps have their distributions."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.losses import TARGETS, example_keys, jitted_simple_loss
from helpers.meshes import EXPLICIT, ROWS, split
from helpers.refusals import assert_refused
from helpers.samplers import SCHEDULE
from jax.tree_util import Partial

from ddpm_jax.diffusion.likelihood import bits_per_dim, prior_term
from ddpm_jax.diffusion.losses import (
    draw_xt,
    hybrid_loss,
    lognormal_timesteps,
    simple_loss,
    uniform_timesteps,
    vlb_loss,
)
from ddpm_jax.diffusion.prediction import make_denoiser, regression_target
from ddpm_jax.diffusion.schedule import (
    edm_betas,
    from_betas,
    linear_betas,
    per_example,
    q_sample,
    zero_terminal_snr,
)

X0 = 0.5


def exact_output(target, error, xt, t):
    """The exact output for images that are X0 everywhere, plus an error per channel."""
    signal, noise = per_example(SCHEDULE.signal_and_noise(t), xt)
    eps = (xt - signal * X0) / noise
    v = signal * eps - noise * X0
    output = {"eps": eps, "x0": jnp.full_like(xt, X0), "v": v, "flow": eps - X0}[target]
    return output + error


def scaled_input(factor, xt, t):
    return factor * xt


def learned(xt, t):
    """Any output for the target and for the log variance."""
    return jnp.concatenate([xt, xt], -1)


def uniform_images(n):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (n, 4, 4, 1)), jnp.float32)


@jax.jit
def losses_by_target(keys, network_of, x0, **options):
    """L_simple for each target. One program for all of them compiles faster than four."""
    return {
        target: simple_loss(keys, SCHEDULE, network_of[target], x0, target, **options)
        for target in TARGETS
    }


EXACT = {target: Partial(partial(exact_output, target, 0.0)) for target in TARGETS}
ZERO = dict.fromkeys(TARGETS, Partial(scaled_input, 0.0))
SCALED = dict.fromkeys(TARGETS, Partial(scaled_input, 0.1))


@functools.cache
def losses_of_constant_images():
    """By target, the losses of the exact output and of zero output for 1024 images of X0."""
    x0 = np.full((1024, 8, 8, 1), X0, np.float32)
    keys = example_keys(1024)
    return [jax.device_get(losses_by_target(keys, networks, x0)) for networks in (EXACT, ZERO)]


@pytest.mark.parametrize("target", TARGETS)
def test_an_exact_network_has_zero_loss(target):
    loss = losses_of_constant_images()[0][target]
    assert loss.shape == (1024,)
    assert np.max(loss) < 1e-9


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_of_zero_output_is_the_second_moment_of_the_target(target):
    alpha_bar = np.cumprod(1 - linear_betas())
    v = np.mean(alpha_bar + (1 - alpha_bar) * X0**2)
    expected = {"eps": 1.0, "x0": X0**2, "v": v, "flow": 1 + X0**2}[target]
    loss = losses_of_constant_images()[1][target]
    assert abs(np.mean(loss) - expected) < 5 * np.std(loss) / np.sqrt(1024) + 1e-6


def test_the_error_is_squared_and_averaged_over_pixels_and_channels():
    error = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    network = Partial(partial(exact_output, "eps"), error)
    x0 = np.full((8, 4, 4, 3), X0, np.float32)
    loss = jitted_simple_loss(example_keys(8), SCHEDULE, network, x0, "eps")
    np.testing.assert_allclose(loss, (1 + 4 + 9) / 3, rtol=1e-4)


def test_all_timesteps_are_equally_likely():
    def network(xt, t):
        return jnp.broadcast_to(per_example(t, xt).astype(jnp.float32), xt.shape)

    schedule = from_betas(np.full(5, 0.7))
    x0 = np.zeros((5000, 1, 1, 1), np.float32)
    t_squared = jitted_simple_loss(example_keys(5000), schedule, Partial(network), x0, "x0")
    values, counts = np.unique(np.asarray(t_squared), return_counts=True)
    assert values.tolist() == [0, 1, 4, 9, 16]
    assert np.max(np.abs(counts - 1000)) < 5 * np.sqrt(5000 * 0.2 * 0.8)


@functools.cache
def losses_of_parts():
    """By target, the losses of eight images: all of them, each half, and in reverse order."""
    x0 = np.asarray(uniform_images(8))
    keys = example_keys(8)
    parts = (slice(None), slice(4), slice(4, 8), slice(None, None, -1))
    return [jax.device_get(losses_by_target(keys[part], SCALED, x0[part])) for part in parts]


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_of_an_example_does_not_depend_on_how_the_batch_is_split(target):
    whole, first, second, reverse = (losses[target] for losses in losses_of_parts())
    assert len(set(whole.tolist())) == 8
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(reverse, whole[::-1])


def test_the_loss_has_the_gradient_of_its_formula():
    """d/dw of mean (w - x0)^2 is 2 (w - x0)."""
    x0 = jnp.full((4, 2, 2, 1), X0)

    def loss(w):
        network = lambda xt, t: jnp.full(xt.shape, w)  # noqa: E731
        return jnp.mean(simple_loss(example_keys(4), SCHEDULE, network, x0, "x0"))

    grad = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(grad(jnp.float32(0.8)), 2 * (0.8 - X0), rtol=1e-5)


WEIGHTS = np.arange(8, dtype=np.float32)


@functools.cache
def given_weights_and_timesteps():
    """By target, the losses with given timesteps, those with WEIGHTS too, and the errors."""

    @jax.jit
    def compute(keys, x0, t):
        plain = losses_by_target(keys, SCALED, x0, t=t)
        weighted = losses_by_target(keys, SCALED, x0, t=t, weight=jnp.asarray(WEIGHTS))
        xt, eps = draw_xt(keys, SCHEDULE, x0, t)
        signal, noise = per_example(SCHEDULE.signal_and_noise(t), x0)
        targets = {name: regression_target(name, x0, eps, signal, noise) for name in TARGETS}
        return plain, weighted, {name: 0.1 * xt - target for name, target in targets.items()}

    return jax.device_get(compute(example_keys(8), uniform_images(8), jnp.arange(8) * 140))


@pytest.mark.parametrize("target", TARGETS)
def test_given_weights_and_timesteps_are_used(target):
    plain, weighted, error = (each[target] for each in given_weights_and_timesteps())
    np.testing.assert_allclose(weighted, plain * WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(plain, np.mean(error**2, (1, 2, 3)), rtol=1e-5)


# The distributions of timesteps


def test_lognormal_timesteps_are_normal_in_log_sigma():
    schedule = from_betas(edm_betas())

    @jax.jit
    def draw(keys):
        t = lognormal_timesteps(keys, schedule)
        return t, schedule.snr(t)

    t, snr = draw(example_keys(4000))
    log_sigma = -0.5 * np.log(np.asarray(snr, float))
    assert abs(np.mean(log_sigma) + 1.2) < 5 * 1.2 / np.sqrt(4000)
    assert abs(np.std(log_sigma) / 1.2 - 1) < 5 / np.sqrt(2 * 4000)
    assert t.dtype == jnp.float32


def test_lognormal_timesteps_stay_within_the_schedule():
    draw = jax.jit(lambda schedule: lognormal_timesteps(example_keys(500), schedule, 0.0, 50.0))
    t = np.asarray(draw(SCHEDULE))
    assert (t.min(), t.max()) == (0, 999)
    t = np.asarray(draw(from_betas(zero_terminal_snr(linear_betas()))))
    assert np.all((t >= 0) & (t <= 999))


@pytest.mark.parametrize("draw", [uniform_timesteps, lognormal_timesteps])
def test_timesteps_and_noise_are_independent_and_depend_on_the_examples_key_alone(draw):

    @jax.jit
    def timesteps_and_noise(keys, x0):
        _, eps = draw_xt(keys, SCHEDULE, x0, jnp.zeros(len(keys), jnp.int32))
        return draw(keys, SCHEDULE), eps, draw(keys[5:9], SCHEDULE)

    x0 = np.zeros((2000, 1, 1, 1), np.float32)
    t, eps, part = jax.device_get(timesteps_and_noise(example_keys(2000), x0))
    correlation = np.corrcoef(t, eps.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(2000)
    np.testing.assert_array_equal(part, t[5:9])


def test_losses_and_draws_keep_the_explicit_sharding_of_the_keys():
    def draws(keys, x0):
        network = Partial(scaled_input, 0.5)
        losses = simple_loss(keys, SCHEDULE, network, x0), vlb_loss(keys, SCHEDULE, learned, x0)
        return *losses, lognormal_timesteps(keys, SCHEDULE)

    arguments = split(EXPLICIT, (example_keys(2), jnp.full((2, 2, 2, 1), X0)))
    assert [out.sharding.spec for out in jax.eval_shape(draws, *arguments)] == [ROWS] * 3


def test_draws_and_losses_under_x64_are_the_same_float32():
    keys = example_keys(4)
    x0 = jnp.full((4, 2, 2, 1), X0)

    def draws():
        t = uniform_timesteps(keys, SCHEDULE)
        xt, eps = draw_xt(keys, SCHEDULE, x0, t)
        vlb = vlb_loss(keys, SCHEDULE, learned, x0)
        return t, xt, eps, lognormal_timesteps(keys, SCHEDULE), vlb, prior_term(SCHEDULE, x0)

    expected = jax.jit(draws)()
    with jax.enable_x64(True):
        ours = jax.jit(draws)()
    assert [out.dtype for out in ours] == [out.dtype for out in expected]
    for out, plain in zip(ours, expected, strict=True):
        np.testing.assert_allclose(out, plain, rtol=1e-5)


def test_images_of_integers_are_refused(monkeypatch):
    """8-bit levels would be taken for noise of 255 times the size."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x0 = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    keys = example_keys(2)

    def network(xt, t):
        return xt

    for call in (
        lambda: simple_loss(keys, SCHEDULE, network, x0),
        lambda: bits_per_dim(keys, SCHEDULE, make_denoiser(SCHEDULE, network), x0),
    ):
        with pytest.raises(ValueError, match=r"must be floats, not uint8"):
            call()


# Arrays that JAX would broadcast


def test_arrays_that_do_not_match_the_images_are_refused(monkeypatch):
    """One key, timestep, weight, noise or channel would be shared by all images."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    keys = example_keys(2)
    x0 = uniform_images(2)
    t = jnp.array([3, 5])
    arguments = {"keys": keys, "schedule": SCHEDULE, "network": partial(scaled_input, 0.1)}
    arguments |= {"x0": x0, "t": t}
    losses = [simple_loss, partial(hybrid_loss, variance="fixed_small")]
    losses.append(partial(vlb_loss, variance="fixed_small"))
    cases = [
        ({"keys": keys[:1]}, r"keys must have shape \(2,\) to match the batch, not \(1,\)"),
        ({"keys": keys[:1], "t": None}, "keys must have shape"),
        ({"t": t[:1]}, "t must have shape"),
        ({"network": lambda xt, t: xt[:1]}, "network's output must have the shape of its input"),
        (
            {"network": lambda xt, t: jnp.concatenate([xt, xt], -1)[:1]},
            "network's output must have the shape of its input",
        ),
    ]
    for loss in losses:
        assert_refused(lambda change, loss=loss: loss(**arguments | change), cases)
    weight = [({"weight": jnp.ones(1)}, "weight must have shape")]
    for loss in losses[:2]:
        assert_refused(lambda change, loss=loss: loss(**arguments | change), weight)

    noisy = {"schedule": SCHEDULE, "x0": x0, "t": t, "eps": x0}
    cases = [({"t": t[:1]}, "t must have"), ({"eps": x0[:1]}, "eps must have shape")]
    assert_refused(lambda change: q_sample(**noisy | change), cases)

    bound = {"keys": keys, "schedule": SCHEDULE, "x0": x0, "denoise": None}
    assert_refused(lambda change: bits_per_dim(**bound | change), [({"keys": keys[:1]}, "keys")])
