"""Objective refuses wrong settings; its schedule and loss are the functions that they name."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion import objective as objective_module
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.preconditioning import precondition
from ddpm_jax.diffusion.schedule import BETAS, from_betas, zero_terminal_snr
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.samplers import sample_keys
from ddpm_jax.training.step import model_loss

SHAPE = (4, 4, 1)
KEYS = sample_keys(0, jnp.arange(3))
SCHEDULE = Objective().noise_schedule
IMAGES = jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1)


def network(xt, t):
    return 0.5 * jnp.tanh(xt)


def two_outputs(xt, t):
    """A network with an output for the log variance too."""
    return jnp.concatenate([0.5 * jnp.tanh(xt), 0.1 * xt], -1)


def assert_tables_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, tuple(vars(a).values()), tuple(vars(b).values()))


@pytest.mark.parametrize("name", BETAS)
def test_noise_schedule_is_the_named_schedule(name):
    objective = Objective(schedule=name, timesteps=200, beta_start=0.001, beta_end=0.05, target="v")
    ends = () if name in ("squaredcos", "flow", "edm") else (0.001, 0.05)
    with warnings.catch_warnings():
        # scaled_linear does not reach noise in 200 steps between these betas.
        warnings.simplefilter("ignore")
        assert_tables_equal(objective.noise_schedule, from_betas(BETAS[name](200, *ends)))


def test_the_default_is_ho_et_als_objective():
    assert Objective().target == "eps"
    assert_tables_equal(Objective().noise_schedule, from_betas(np.linspace(1e-4, 0.02, 1000)))
    expected = losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, "eps")
    np.testing.assert_array_equal(Objective().loss(KEYS, network, IMAGES), expected)


def test_the_noise_schedule_is_computed_once_and_may_first_be_used_inside_jit(monkeypatch):
    calls = []
    schedule = from_betas(BETAS["linear"](7, 1e-4, 0.9))

    def counting_from_betas(betas):
        calls.append(1)
        return from_betas(betas)

    monkeypatch.setattr(objective_module, "from_betas", counting_from_betas)
    objective = Objective(timesteps=7, beta_end=0.9)

    @jax.jit
    def use_in_scan(x):
        body = jax.grad(lambda x, t: jnp.sum(objective.noise_schedule.snr(t) * x))
        return jax.lax.scan(lambda x, t: (body(x, t), None), x, jnp.arange(7))[0]

    np.testing.assert_allclose(use_in_scan(jnp.float32(1)), schedule.snr(jnp.array(6)), rtol=1e-6)
    assert_tables_equal(objective.noise_schedule, schedule)
    assert objective.noise_schedule is objective.noise_schedule
    assert len(calls) == 1


def test_zero_terminal_snr_is_applied():
    objective = Objective(zero_terminal_snr=True, target="v")
    expected = from_betas(zero_terminal_snr(BETAS["linear"]()))
    assert_tables_equal(objective.noise_schedule, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 0}, "timesteps must be at least 1, not 0"),
        ({"beta_start": 0.0}, "0 < beta_start <= beta_end < 1, not 0.0 and 0.02"),
        ({"beta_start": 0.03}, "0 < beta_start <= beta_end < 1, not 0.03 and 0.02"),
        ({"beta_end": 1.0}, "0 < beta_start <= beta_end < 1, not 0.0001 and 1.0"),
        ({"log_sigma_std": 0.0}, "log_sigma_std must be positive, not 0.0"),
        ({"gamma": 0.0}, "gamma must be positive, not 0.0"),
        ({"zero_terminal_snr": True}, "use target x0 or v"),
        ({"schedule": "flow"}, "use target x0 or v"),
        (
            {"variance": "learned"},
            "L_simple does not train the variance: with variance learned set loss_kind to hybrid",
        ),
        ({"loss_kind": "hybrid"}, "set variance to learned_range"),
        (
            {"loss_kind": "vlb", "timestep_sampling": "lognormal"},
            "with loss_kind vlb set timestep_sampling to uniform or importance",
        ),
        ({"loss_kind": "vlb", "weighting": "p2"}, "leave weighting at simple"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("schedule", "linear, scaled_linear, squaredcos, sigmoid, flow, edm"),
        ("target", "eps, x0, v, flow, edm"),
        ("timestep_sampling", "uniform, lognormal, importance"),
        ("weighting", "simple, min_snr, soft_min_snr, p2"),
        ("loss_kind", "simple, hybrid, vlb"),
        ("variance", "fixed_small, fixed_large, learned, learned_range"),
    ],
)
def test_unknown_names_are_refused_and_the_valid_ones_listed(name, valid):
    objective = Objective()
    # The type check of the tests would refuse the name before the constructor does.
    object.__setattr__(objective, name, "nonsense")
    with pytest.raises(
        ValueError, match=f"Unknown objective.{name} 'nonsense': choose one of {valid}"
    ):
        objective.__post_init__()


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_the_loss_is_l_simple_for_the_target(target):
    loss = Objective(target=target).loss(KEYS, network, IMAGES)
    expected = losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, target)
    np.testing.assert_array_equal(loss, expected)
    other_target = {"eps": "x0", "x0": "v", "v": "flow", "flow": "eps"}[target]
    assert jnp.all(loss != Objective(target=other_target).loss(KEYS, network, IMAGES))


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "p2"])
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_the_loss_is_weighted_by_weighting_and_gamma(weighting, gamma):
    objective = Objective(target="v", weighting=weighting, gamma=gamma)
    t = losses.uniform_timesteps(KEYS, SCHEDULE)
    weight = losses.loss_weight(weighting, "v", SCHEDULE.snr(t), gamma)
    expected = weight * losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, "v")
    np.testing.assert_allclose(objective.loss(KEYS, network, IMAGES), expected, rtol=1e-6)


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_loss_is_l_hybrid_or_l_vlb_for_the_variance(variance, weighting):
    hybrid = Objective(target="v", loss_kind="hybrid", variance=variance, weighting=weighting)
    t = losses.uniform_timesteps(KEYS, SCHEDULE)
    weight = losses.loss_weight(weighting, "v", SCHEDULE.snr(t))
    expected = losses.hybrid_loss(KEYS, SCHEDULE, two_outputs, IMAGES, "v", variance, weight=weight)
    np.testing.assert_array_equal(hybrid.loss(KEYS, two_outputs, IMAGES), expected)
    vlb = Objective(target="v", loss_kind="vlb", variance=variance)
    expected = losses.vlb_loss(KEYS, SCHEDULE, two_outputs, IMAGES, "v", variance)
    np.testing.assert_array_equal(vlb.loss(KEYS, two_outputs, IMAGES), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"timestep_sampling": "lognormal"},
        {"timestep_sampling": "importance"},
        {"loss_kind": "vlb"},
    ],
    ids=str,
)
def test_given_timesteps_are_used(settings):
    t = jnp.array([3, 500, 999])
    calls = []

    def recording_network(xt, t):
        calls.append(t)
        return xt

    Objective(**settings).loss(KEYS, recording_network, IMAGES, t)
    np.testing.assert_array_equal(calls[0], t)


def test_lognormal_timesteps_have_the_set_mean_and_standard_deviation():
    calls = []

    def recording_network(xt, t):
        calls.append(t)
        return xt

    objective = Objective(
        schedule="edm", timestep_sampling="lognormal", log_sigma_mean=0.5, log_sigma_std=1e-3
    )
    objective.loss(KEYS, recording_network, IMAGES)
    log_sigma = -0.5 * np.log(objective.noise_schedule.snr(calls[0]))
    assert np.max(np.abs(log_sigma - 0.5)) < 5e-3
    assert len(set(log_sigma.tolist())) == 3


def test_target_edm_preconditions_the_network_in_the_loss_and_the_denoiser():
    settings = {"target": "edm", "schedule": "edm", "timestep_sampling": "lognormal"}
    objective = Objective(**settings)
    schedule = objective.noise_schedule
    t = losses.lognormal_timesteps(KEYS, schedule)
    xt, _ = losses.draw_xt(KEYS, schedule, IMAGES, t)
    x0 = precondition(schedule, network)(xt, t)
    sigma = np.exp(-0.5 * np.log(np.asarray(schedule.snr(t), float)))
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    error = np.mean((np.asarray(x0, float) - np.asarray(IMAGES)) ** 2, (1, 2, 3))
    loss = objective.loss(KEYS, network, IMAGES)
    np.testing.assert_allclose(loss, weight * error, rtol=1e-4)
    denoise = sampling_denoiser(objective, network, Sampling(clip_x0=False))
    expected = precondition(schedule, network)(xt, jnp.full(3, 300))
    np.testing.assert_allclose(denoise(xt, jnp.array(300)).x0, expected, rtol=1e-6)
    weighted_loss = Objective(**settings, weighting="min_snr").loss(KEYS, network, IMAGES)
    np.testing.assert_allclose(weighted_loss, np.minimum(sigma**-2, 5) * error, rtol=1e-4)


SIZES = {"image_size": 4, "channels": 3, "widths": (4,), "groups": 2, "learned_variance": True}
UNET = UNet(**SIZES, attention=(False,), layers_per_level=1, middle="none")
CONV_UNET = ConvUNet(**SIZES, time_embedding_dim=4)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(("net", "target"), [(UNET, "eps"), (CONV_UNET, "edm")], ids=["u", "conv"])
def test_l_hybrid_trains_the_mean_and_variance_outputs_of_a_net(net, target):
    objective = Objective(
        target=target, loss_kind="hybrid", variance="learned_range", timesteps=20, beta_end=0.6
    )
    images = jax.random.uniform(jax.random.key(1), (3, 4, 4, 3), minval=-1)
    loss = model_loss(net, objective)
    params = net.init(KEYS[0])

    @jax.jit
    @jax.grad
    def gradient(bias):
        moved = params | {"conv_out": params["conv_out"] | {"bias": bias}}
        return jnp.mean(loss(moved, KEYS, {"image": images}))

    by_channel = np.abs(gradient(params["conv_out"]["bias"]))
    assert by_channel.shape == (6,)
    assert np.all(by_channel > 0)
    assert np.all(by_channel[:3].mean() > by_channel[3:].mean())
