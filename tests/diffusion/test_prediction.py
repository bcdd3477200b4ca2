"""x0 and eps from a network's output for any target satisfy Eq. 4."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.refusals import assert_refused
from jax.tree_util import Partial

from ddpm_jax.diffusion.losses import loss_weight, simple_loss, vlb_loss
from ddpm_jax.diffusion.prediction import FROM_OUTPUT, make_denoiser, regression_target
from ddpm_jax.diffusion.schedule import (
    flow_betas,
    from_betas,
    linear_betas,
    per_example,
    q_sample,
    zero_terminal_snr,
)

SCHEDULE = from_betas(linear_betas())
T = jnp.array([0, 10, 250, 500, 900])
TARGETS = ["eps", "x0", "v", "flow"]


def normal(seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((5, 4, 4, 3)), jnp.float32)


@pytest.fixture(scope="module")
def example():
    """x0, eps, xt and the two coefficients at `T`."""
    x0 = normal(0)
    eps = normal(1)
    return x0, eps, q_sample(SCHEDULE, x0, T, eps), *per_example(SCHEDULE.signal_and_noise(T), x0)


def exact_output(target, x0, eps, t):
    """The output of an exact network for `target`, in float64."""
    alpha_bar = np.cumprod(1 - linear_betas())[np.asarray(t)].reshape(-1, 1, 1, 1)
    x0 = np.asarray(x0, float)
    eps = np.asarray(eps, float)
    v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x0
    return {"eps": eps, "x0": x0, "v": v, "flow": eps - x0}[target]


@pytest.mark.parametrize("target", TARGETS)
def test_the_regression_target_matches_its_definition(example, target):
    x0, eps, _, signal, noise = example
    result = regression_target(target, x0, eps, signal, noise)
    np.testing.assert_allclose(result, exact_output(target, x0, eps, T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_an_exact_output_gives_back_x0_and_eps(example, target):
    x0, eps, xt, signal, noise = example
    output = regression_target(target, x0, eps, signal, noise)
    prediction = FROM_OUTPUT[target](xt, output, signal, noise)
    # The rounding error of xt is multiplied by sigma in x0 from eps (85 at t = 900), and by
    # 1 / sigma in eps from x0 (100 at t = 0).
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-4)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-4)
    assert prediction.log_var is None


@pytest.mark.parametrize("clip_x0", [None, 1.0, 0.5])
@pytest.mark.parametrize("target", TARGETS)
def test_x0_and_eps_satisfy_eq_4_for_any_output(example, target, clip_x0):
    *_, xt, signal, noise = example
    denoise = jax.jit(make_denoiser(SCHEDULE, lambda xt, t: normal(2), target, clip_x0))
    signal, noise, xt = (np.asarray(array) for array in (signal, noise, xt))
    for t, signal_t, noise_t in zip(T, signal.ravel(), noise.ravel(), strict=True):
        x0, eps, _ = denoise(xt, t)
        np.testing.assert_allclose(signal_t * x0 + noise_t * eps, xt, atol=1e-5)
        if clip_x0 is not None:
            assert np.max(np.abs(x0)) == clip_x0


def test_clipping_keeps_an_x0_within_the_limits(example):
    *_, xt, _, _ = example
    x0 = 0.1 * jnp.tanh(normal(3))
    for clip_x0 in (None, 1.0):
        denoise = make_denoiser(SCHEDULE, lambda xt, t: x0, "x0", clip_x0)
        np.testing.assert_array_equal(denoise(xt, jnp.array(500)).x0, x0)


def test_keep_eps_keeps_the_networks_eps_when_x0_is_clipped(example):
    *_, xt, _, _ = example
    denoise = make_denoiser(SCHEDULE, lambda xt, t: normal(2), keep_eps=True)
    prediction = denoise(xt, jnp.array(500))
    np.testing.assert_array_equal(prediction.eps, normal(2))
    assert np.max(np.abs(prediction.x0)) == 1


def test_without_clipping_x0_is_unlimited(example):
    *_, xt, _, _ = example
    denoise = make_denoiser(SCHEDULE, lambda xt, t: 10 * xt, "x0", None)
    np.testing.assert_array_equal(denoise(xt, jnp.array(500)).x0, 10 * xt)


def linear_network(params, xt, t):
    return params["w"] * xt + params["b"] * per_example(t, xt).astype(jnp.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_function_and_a_partial_are_the_same_network(example, target):
    *_, xt, _, _ = example
    params = {"w": jnp.float32(0.3), "b": jnp.float32(1e-3)}
    by_function = make_denoiser(SCHEDULE, lambda xt, t: linear_network(params, xt, t), target)
    by_partial = make_denoiser(SCHEDULE, Partial(linear_network, params), target)
    t = jnp.array(500)
    for a, b in zip(by_function(xt, t)[:2], by_partial(xt, t)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_and_limits_pass_through_jit_as_arguments(example):
    *_, xt, _, _ = example
    run = jax.jit(lambda denoise, xt, t: denoise(xt, t).x0)
    for w, clip_x0 in ((0.3, 1.0), (0.5, 0.25)):
        network = Partial(linear_network, {"w": jnp.float32(w), "b": jnp.float32(0)})
        x0 = run(make_denoiser(SCHEDULE, network, "x0", clip_x0), xt, jnp.array(3))
        np.testing.assert_allclose(x0, np.clip(w * np.asarray(xt), -clip_x0, clip_x0), rtol=1e-6)
    assert run._cache_size() == 1


@pytest.mark.parametrize("t", [jnp.array(700), jnp.array(700.25)], ids=["integer", "float"])
def test_the_network_receives_one_timestep_per_example(example, t):
    *_, xt, _, _ = example

    def network(xt, t):
        return xt * 0 + per_example(t, xt).astype(jnp.float32)

    prediction = make_denoiser(SCHEDULE, network, "x0", None)(xt, t)
    np.testing.assert_array_equal(prediction.x0, jnp.full(xt.shape, t, jnp.float32))


@pytest.mark.parametrize("t", [(9, 4), (4, 0), (0, -1)])
def test_an_euler_step_of_rectified_flow_is_a_ddim_step_without_noise(t):
    """On the path x = (1 - s) x0 + s eps an Euler step is x + (s_next - s) u (Liu et al. 2023)."""
    schedule = from_betas(flow_betas(10))
    x = np.asarray(normal(0), float)
    u = np.asarray(normal(1), float)
    s, s_next = ((timestep + 1) / 10 for timestep in t)
    # xt is x divided by the norm of its coefficients.
    xt = jnp.asarray(1 / np.hypot(1 - s, s) * x, jnp.float32)
    denoise = make_denoiser(schedule, lambda xt, t: jnp.asarray(u, jnp.float32), "flow", None)
    prediction = denoise(xt, jnp.array(t[0]))
    scale_next = 1 / np.hypot(1 - s_next, s_next)
    x0 = np.asarray(prediction.x0, float)
    eps = np.asarray(prediction.eps, float)
    ddim = scale_next * ((1 - s_next) * x0 + s_next * eps)
    np.testing.assert_allclose(ddim, scale_next * (x + (s_next - s) * u), atol=1e-5)


def test_the_output_for_the_variance_passes_through(example):
    *_, xt, _, _ = example
    t = jnp.array(500)
    both = make_denoiser(SCHEDULE, lambda xt, t: jnp.concatenate([normal(2), normal(3)], -1))(xt, t)
    alone = make_denoiser(SCHEDULE, lambda xt, t: normal(2))(xt, t)
    np.testing.assert_array_equal(both.log_var, normal(3))
    np.testing.assert_array_equal(both.x0, alone.x0)


def test_a_threshold_that_is_no_quantile_is_refused():
    def make(p):
        make_denoiser(SCHEDULE, abs, "x0", dynamic_threshold=p)

    assert_refused(make, [(99.5, "above 0 and at most 1, not 99.5"), (0.0, "above 0")])
    with pytest.raises(ValueError, match=r"threshold_limit must be at least 1, not 0\.5"):
        make_denoiser(SCHEDULE, abs, "x0", dynamic_threshold=0.9, threshold_limit=0.5)
    with pytest.raises(ValueError, match=r"threshold_limit needs a dynamic_threshold\.$"):
        make_denoiser(SCHEDULE, abs, "x0", threshold_limit=2.0)


def test_each_image_has_its_own_dynamic_threshold():
    """Section 2.3, Saharia et al. 2022: the quantile of |x0|, if above 1."""
    rng = np.random.default_rng(0)
    scales = np.array([0.3, 2.0, 5.0]).reshape(-1, 1, 1, 1)
    xt = jnp.asarray(rng.normal(size=(3, 4, 4, 1)) * scales - scales / 2, jnp.float32)
    denoise = make_denoiser(SCHEDULE, lambda xt, t: xt, "x0", dynamic_threshold=0.9)
    x0 = denoise(xt, jnp.array(10)).x0
    for given, clipped in zip(np.asarray(xt, float), x0, strict=True):
        bound = max(np.quantile(np.abs(given), 0.9), 1)
        np.testing.assert_allclose(clipped, np.clip(given, -bound, bound) / bound, atol=1e-5)


def test_eps_is_refused_for_a_schedule_that_ends_at_zero_snr():
    """x0 would be the sign of eps, or NaN."""
    schedule = from_betas(zero_terminal_snr(linear_betas(20)))
    with pytest.raises(ValueError, match="At zero SNR, eps does not determine x0: use target v"):
        make_denoiser(schedule, abs)
    make_denoiser(schedule, abs, "v")


def test_a_bound_that_is_not_positive_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = "clip_x0 must be a bound above 0, or None for none, not "
    cases = [(bound, f"{message}{bound}") for bound in (False, np.False_, -1.0)]
    assert_refused(lambda bound: make_denoiser(SCHEDULE, abs, clip_x0=bound), cases)


def test_an_unknown_target_is_refused_and_edm_explained(example, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x0 = example[0]
    arguments = (jax.random.split(jax.random.key(0), 5), SCHEDULE, lambda xt, t: xt, x0)
    calls = (
        lambda target: make_denoiser(SCHEDULE, lambda xt, t: xt, target),
        lambda target: simple_loss(*arguments, target, t=T),
        lambda target: vlb_loss(*arguments, target, "fixed_small", t=T),
        lambda target: loss_weight("min_snr", target, jnp.ones(5)),
    )
    cases = [
        ("epsilon", "Unknown target 'epsilon': choose one of eps, x0, v, flow"),
        ("edm", "Target edm is that of a preconditioned network: use Objective.network_and_target"),
    ]
    for call in calls:
        assert_refused(call, cases)
