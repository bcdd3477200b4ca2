"""Training losses, one number per example.

L_simple = E_{t, x0, eps} || eps - eps_theta(xt, t) ||^2,
xt = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps                      Eq. 14, Ho et al. 2020
L_vlb = L_0 + L_1 + ... + L_{T-1}, the variational bound without the constant L_T
                                                                 Eq. 4, Nichol & Dhariwal 2021
L_hybrid = L_simple + 0.001 L_vlb                                Eq. 16, Nichol & Dhariwal 2021

Without `t`, one timestep per example is drawn uniformly.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax import draws
from ddpm_jax.diffusion.likelihood import Variance, bound_term
from ddpm_jax.diffusion.prediction import (
    FROM_OUTPUT,
    Network,
    Target,
    check_target,
    regression_target,
    split_output,
)
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example, q_sample
from ddpm_jax.errors import check_choice, check_shape

Weighting = Literal["simple", "min_snr", "soft_min_snr", "p2"]
HYBRID_WEIGHT = 0.001


def simple_loss(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    network: Network,
    x0: Float[Array, "b h w c"],
    target: Target = "eps",
    *,
    t: Num[Array, " b"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """L_simple (Eq. 14, Ho et al. 2020): the mean squared error of each example, times its weight.

    `target` is what the network predicts. `keys` holds one key per example, so t and eps do not
    depend on how the batch is split over devices. The network's output for the variance is ignored.
    Raise ValueError for an unknown target, and for edm (`Objective.network_and_target`).
    """
    t = uniform_timesteps(keys, schedule) if t is None else t
    xt, eps = draw_xt(keys, schedule, x0, t)
    output, _ = split_output(network(xt, t), xt)
    return _squared_error(output, schedule, x0, eps, t, target, weight)


def hybrid_loss(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    network: Network,
    x0: Float[Array, "b h w c"],
    target: Target = "eps",
    variance: Variance = "learned_range",
    *,
    t: Int[Array, " b"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """L_hybrid = L_simple + 0.001 L_vlb (Eq. 16, Nichol & Dhariwal 2021).

    L_simple trains the mean and L_vlb the variance: no gradient of L_vlb passes through the mean.
    """
    t = uniform_timesteps(keys, schedule) if t is None else t
    xt, eps = draw_xt(keys, schedule, x0, t)
    output, log_var = split_output(network(xt, t), xt)
    simple = _squared_error(output, schedule, x0, eps, t, target, weight)
    vlb = _vlb(jax.lax.stop_gradient(output), log_var, schedule, x0, xt, t, target, variance)
    return simple + HYBRID_WEIGHT * vlb


def vlb_loss(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    network: Network,
    x0: Float[Array, "b h w c"],
    target: Target = "eps",
    variance: Variance = "learned_range",
    *,
    t: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """T times the variational bound's term at each example's t, in bits per dimension.

    Its mean over uniform t is L_vlb.
    """
    t = uniform_timesteps(keys, schedule) if t is None else t
    xt, _ = draw_xt(keys, schedule, x0, t)
    output, log_var = split_output(network(xt, t), xt)
    return _vlb(output, log_var, schedule, x0, xt, t, target, variance)


def _squared_error(output, schedule, x0, eps, t, target, weight):
    coefficients = per_example(schedule.signal_and_noise(t), x0)
    true_output = regression_target(target, x0, eps, *coefficients)
    check_shape(x0.shape[:1], weight=weight)
    error = jnp.mean((output - true_output) ** 2, axis=(1, 2, 3))
    return error if weight is None else weight * error


def _vlb(output, log_var, schedule, x0, xt, t, target, variance):
    check_target(target)
    coefficients = per_example(schedule.signal_and_noise(t), xt)
    prediction = FROM_OUTPUT[target](xt, output, *coefficients)._replace(log_var=log_var)
    return schedule.timesteps * bound_term(schedule, prediction, x0, xt, t, variance)


def uniform_timesteps(keys: Key[Array, " b"], schedule: NoiseSchedule) -> Int[Array, " b"]:
    """t uniform in 0..T-1, drawn from each example's own key."""
    return draws.integers(_timestep_keys(keys), schedule.timesteps)


def lognormal_timesteps(
    keys: Key[Array, " b"], schedule: NoiseSchedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " b"]:
    """Float t in [0, T-1] such that ln(sigma) ~ N(mean, std^2) (Table 1, Karras et al. 2022).

    On the schedule flow the noise fraction s is then logit-normal (section 3.1, Esser et al. 2024),
    because sigma = s / (1 - s). Each example's t comes from its own key.
    """
    log_sigma = mean + std * draws.normal(_timestep_keys(keys))
    return schedule.timestep_at(-2 * log_sigma)


def draw_xt(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    x0: Float[Array, "b h w c"],
    t: Num[Array, " b"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """xt ~ q(x_t | x_0) and its eps, drawn from each example's own key."""
    check_shape(x0.shape[:1], keys=keys, t=t)
    eps = draws.normal(_noise_keys(keys), x0.shape[1:])
    return q_sample(schedule, x0, t, eps), eps


def _timestep_keys(keys):
    return draws.fold_in(keys, 0)


def _noise_keys(keys):
    return draws.fold_in(keys, 1)


# The weight of the squared error in x0 as a function of (SNR, gamma), and the paper's gamma.
WEIGHTINGS: dict[str, tuple[Callable, float]] = {
    # Hang et al. 2023
    "min_snr": (jnp.minimum, 5.0),
    # Crowson et al. 2024, for sigma_data = 0.5
    "soft_min_snr": (lambda snr, gamma: snr * gamma / (snr + gamma), 4.0),
    # Choi et al. 2022, with k = 1
    "p2": (lambda snr, gamma: snr / (1 + snr) ** gamma, 1.0),
}
# The squared error in each target divided by the squared error in x0, as a function of SNR.
ERROR_OVER_X0_ERROR: dict[str, Callable] = {
    "eps": lambda snr: snr,
    "x0": jnp.ones_like,
    "v": lambda snr: snr + 1,
    "flow": lambda snr: (jnp.sqrt(snr) + 1) ** 2,
}


def loss_weight(
    weighting: Weighting, target: Target, snr: Float[Array, " b"], gamma: float | None = None
) -> Float[Array, " b"]:
    """The weight of the squared error in `target`.

    simple: 1 for every target. The others give the same loss for every target, with these weights
    of the squared error in x0. min_snr: min(SNR, gamma). soft_min_snr: SNR gamma / (SNR + gamma).
    p2: SNR / (1 + SNR)^gamma. At zero SNR they are 0, except for target eps, which gives NaN there.
    `gamma` defaults to the paper's. Raise ValueError for another weighting or target.
    """
    check_target(target)
    check_choice(get_args(Weighting), weighting=weighting)
    if weighting == "simple":
        return jnp.ones_like(snr)
    x0_weight, paper_gamma = WEIGHTINGS[weighting]
    if gamma is None:
        gamma = paper_gamma
    return x0_weight(snr, gamma) / ERROR_OVER_X0_ERROR[target](snr)
