"""The objective's settings: which are refused, and that schedule and loss are those of the parts they name."""

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
    return jnp.concatenate([0.5 * jnp.tanh(xt), 0.1 * xt], -1)


def tables_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, tuple(vars(a).values()), tuple(vars(b).values()))


@pytest.mark.parametrize("name", BETAS)
def test_the_schedule_is_the_named_one(name):
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # scaled_linear never reaches noise within 200 of these betas
        ramp = {"beta_start": 0.001, "beta_end": 0.05}
        found = Objective(schedule=name, timesteps=200, **ramp, target="v").noise_schedule
        ends = () if name in ("squaredcos", "flow", "edm") else (0.001, 0.05)
        tables_equal(found, from_betas(BETAS[name](200, *ends)))


def test_the_default_is_that_of_ho_et_al():
    assert Objective().target == "eps"
    tables_equal(Objective().noise_schedule, from_betas(np.linspace(1e-4, 0.02, 1000)))
    np.testing.assert_array_equal(
        Objective().loss(KEYS, network, IMAGES),
        losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, "eps"),
    )


def test_the_noise_schedule_is_computed_once_also_when_first_asked_for_inside_jit(monkeypatch):
    made, wanted = [], from_betas(BETAS["linear"](7, 1e-4, 0.9))

    def counted(betas):
        made.append(1)
        return from_betas(betas)

    monkeypatch.setattr(objective_module, "from_betas", counted)
    learned = Objective(timesteps=7, beta_end=0.9)

    @jax.jit
    def within(x):
        body = jax.grad(lambda x, t: jnp.sum(learned.noise_schedule.snr(t) * x))
        return jax.lax.scan(lambda x, t: (body(x, t), None), x, jnp.arange(7))[0]

    np.testing.assert_allclose(within(jnp.float32(1)), wanted.snr(jnp.array(6)), rtol=1e-6)
    tables_equal(learned.noise_schedule, wanted)
    assert learned.noise_schedule is learned.noise_schedule
    assert len(made) == 1


def test_zero_terminal_snr_is_applied():
    found = Objective(zero_terminal_snr=True, target="v").noise_schedule
    tables_equal(found, from_betas(zero_terminal_snr(BETAS["linear"]())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 0}, "timesteps must be at least 1, not 0"),
        ({"beta_start": 0.0}, "0 < start <= end < 1, not 0.0 and 0.02"),
        ({"beta_start": 0.03}, "0 < start <= end < 1, not 0.03 and 0.02"),
        ({"beta_end": 1.0}, "0 < start <= end < 1, not 0.0001 and 1.0"),
        ({"log_sigma_std": 0.0}, "log_sigma_std must be positive, not 0.0"),
        ({"gamma": 0.0}, "gamma must be positive, not 0.0"),
        ({"zero_terminal_snr": True}, "use target x0 or v"),
        ({"schedule": "flow"}, "use target x0 or v"),
        (
            {"variance": "learned"},
            "L_simple does not train the variance: with variance learned set bound hybrid",
        ),
        ({"loss_kind": "hybrid"}, "set variance learned_range"),
        (
            {"loss_kind": "vlb", "times": "lognormal"},
            "with bound vlb set times uniform or importance",
        ),
        ({"loss_kind": "vlb", "weighting": "p2"}, "leave weighting at simple"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


@pytest.mark.parametrize(
    ("name", "there_are"),
    [
        ("schedule", "linear, scaled_linear, squaredcos, sigmoid, flow, edm"),
        ("target", "eps, x0, v, flow, edm"),
        ("times", "uniform, lognormal, importance"),
        ("weighting", "simple, min_snr, soft_min_snr, p2"),
        ("bound", "simple, hybrid, vlb"),
        ("variance", "fixed_small, fixed_large, learned, learned_range"),
    ],
)
def test_unknown_names_are_refused_and_the_known_ones_listed(name, there_are):
    objective = Objective()
    object.__setattr__(
        objective, name, "nonsense"
    )  # the tests' own type check would refuse it before
    with pytest.raises(ValueError, match=f"unknown {name} 'nonsense'; there are: {there_are}"):
        objective.__post_init__()


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_the_loss_is_l_simple_for_the_target(target):
    found = Objective(target=target).loss(KEYS, network, IMAGES)
    np.testing.assert_array_equal(
        found, losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, target)
    )
    other = {"eps": "x0", "x0": "v", "v": "flow", "flow": "eps"}[target]
    assert jnp.all(found != Objective(target=other).loss(KEYS, network, IMAGES))


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "p2"])
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_the_loss_is_weighted_as_it_says(weighting, gamma):
    objective = Objective(target="v", weighting=weighting, gamma=gamma)
    t = losses.uniform_timesteps(KEYS, SCHEDULE)
    weight = losses.loss_weight(weighting, "v", SCHEDULE.snr(t), gamma)
    wanted = weight * losses.simple_loss(KEYS, SCHEDULE, network, IMAGES, "v")
    np.testing.assert_allclose(objective.loss(KEYS, network, IMAGES), wanted, rtol=1e-6)


@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_loss_is_l_hybrid_or_l_vlb_for_the_variance(variance, weighting):
    hybrid = Objective(target="v", loss_kind="hybrid", variance=variance, weighting=weighting)
    t = losses.uniform_timesteps(KEYS, SCHEDULE)
    weight = losses.loss_weight(weighting, "v", SCHEDULE.snr(t))
    wanted = losses.hybrid_loss(KEYS, SCHEDULE, two_outputs, IMAGES, "v", variance, weight=weight)
    np.testing.assert_array_equal(hybrid.loss(KEYS, two_outputs, IMAGES), wanted)
    found = Objective(target="v", loss_kind="vlb", variance=variance).loss(
        KEYS, two_outputs, IMAGES
    )
    wanted = losses.vlb_loss(KEYS, SCHEDULE, two_outputs, IMAGES, "v", variance)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "settings", [{}, {"times": "lognormal"}, {"times": "importance"}, {"loss_kind": "vlb"}], ids=str
)
def test_given_timesteps_are_used(settings):
    t, seen = jnp.array([3, 500, 999]), []

    def record(xt, t):
        seen.append(t)
        return xt

    Objective(**settings).loss(KEYS, record, IMAGES, t)
    np.testing.assert_array_equal(seen[0], t)


def test_lognormal_times_have_the_mean_and_spread_that_are_set():
    seen = []

    def record(xt, t):
        seen.append(t)
        return xt

    Objective(
        schedule="edm", timestep_sampling="lognormal", log_sigma_mean=0.5, log_sigma_std=1e-3
    ).loss(KEYS, record, IMAGES)
    log_sigma = -0.5 * np.log(Objective(schedule="edm").noise_schedule.snr(seen[0]))
    assert np.max(np.abs(log_sigma - 0.5)) < 5e-3
    assert len(set(log_sigma.tolist())) == 3


def test_edm_is_the_preconditioned_network_in_loss_and_denoiser():
    objective = Objective(target="edm", schedule="edm", timestep_sampling="lognormal")
    schedule = objective.noise_schedule
    t = losses.lognormal_timesteps(KEYS, schedule)
    xt, _ = losses.draw_xt(KEYS, schedule, IMAGES, t)
    x0 = precondition(schedule, network)(xt, t)
    sigma = np.exp(-0.5 * np.log(np.asarray(schedule.snr(t), float)))
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    wanted = weight * np.mean((np.asarray(x0, float) - np.asarray(IMAGES)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(objective.loss(KEYS, network, IMAGES), wanted, rtol=1e-4)
    found = sampling_denoiser(objective, network, Sampling(clip_x0=False))(xt, jnp.array(300))
    np.testing.assert_allclose(
        found.x0, precondition(schedule, network)(xt, jnp.full(3, 300)), rtol=1e-6
    )
    weighted = Objective(
        target="edm", schedule="edm", timestep_sampling="lognormal", weighting="min_snr"
    )
    wanted *= np.minimum(sigma**-2, 5) / weight
    np.testing.assert_allclose(weighted.loss(KEYS, network, IMAGES), wanted, rtol=1e-4)


SIZES = {"image_size": 4, "channels": 3, "widths": (4,), "groups": 2, "learned_variance": True}
UNET = UNet(**SIZES, attention=(False,), layers_per_level=1)
CONV_UNET = ConvUNet(**SIZES, time_embedding_dim=4)


@pytest.mark.parametrize(("net", "target"), [(UNET, "eps"), (CONV_UNET, "edm")], ids=["u", "conv"])
def test_a_net_that_learns_its_variance_is_taught_in_both_halves(net, target):
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
