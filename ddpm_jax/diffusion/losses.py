"""Training losses, one number an example.

L_simple = E_{t, x0, eps} || eps - eps_theta(sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps, t) ||^2
                                                                               Eq. 14, Ho et al. 2020
L_vlb = L_0 + L_1 + ... + L_{T-1}, the variational bound less its constant     Eq. 4, Nichol & Dhariwal 2021
L_hybrid = L_simple + 0.001 L_vlb                                              Eq. 16, Nichol & Dhariwal 2021

Where `t` is not given, each example has its own, uniform.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax.diffusion.likelihood import Variance, bound_term
from ddpm_jax.diffusion.prediction import (
    FROM_OUTPUT,
    Network,
    Target,
    regression_target,
    split_output,
)
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example, q_sample

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
    """Mean squared error of each example, times its weight: Eq. 14, Ho et al. 2020, or its form for another target.

    `keys` holds one key an example, so t and eps do not depend on how the batch is split over devices. What the
    network says of the variance is left out.
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
    """L_simple + 0.001 L_vlb: L_simple teaches the mean, L_vlb the variance alone (Eq. 16, Nichol & Dhariwal 2021)."""
    t = uniform_timesteps(keys, schedule) if t is None else t
    xt, eps = draw_xt(keys, schedule, x0, t)
    output, said = split_output(network(xt, t), xt)
    simple = _squared_error(output, schedule, x0, eps, t, target, weight)
    vlb = _vlb(jax.lax.stop_gradient(output), said, schedule, x0, xt, t, target, variance)
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
    """T times the term of the variational bound at each example's t: on average L_vlb, in bits a dimension."""
    t = uniform_timesteps(keys, schedule) if t is None else t
    xt, _ = draw_xt(keys, schedule, x0, t)
    return _vlb(*split_output(network(xt, t), xt), schedule, x0, xt, t, target, variance)


def _squared_error(output, schedule, x0, eps, t, target, weight):
    wanted = regression_target(target, x0, eps, *per_example(schedule.signal_and_noise(t), x0))
    error = jnp.mean((output - wanted) ** 2, axis=(1, 2, 3))
    return error if weight is None else weight * error


def _vlb(output, said, schedule, x0, xt, t, target, variance):
    prediction = FROM_OUTPUT[target](
        xt, output, *per_example(schedule.signal_and_noise(t), xt)
    )._replace(log_var=said)
    return schedule.timesteps * bound_term(schedule, prediction, x0, xt, t, variance)


def uniform_timesteps(keys: Key[Array, " b"], schedule: NoiseSchedule) -> Int[Array, " b"]:
    """t uniform in 0..T-1, from each example's own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, schedule.timesteps))(_split(keys)[0])


def lognormal_timesteps(
    keys: Key[Array, " b"], schedule: NoiseSchedule, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " b"]:
    """Float t, within [0, T-1], of ln(sigma) ~ N(mean, std^2) (Table 1, Karras et al. 2022).

    On the schedule flow the share of noise s is logit-normal (section 3.1, Esser et al. 2024), as sigma = s / (1 - s).
    """
    log_sigma = mean + std * jax.vmap(jax.random.normal)(_split(keys)[0])
    return schedule.timestep_at(-2 * log_sigma)


def draw_xt(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    x0: Float[Array, "b h w c"],
    t: Num[Array, " b"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """xt ~ q(x_t | x_0), and the eps it was made with, of each example's own key."""
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(_split(keys)[1])
    return q_sample(schedule, x0, t, eps), eps


def _split(keys):
    """The keys for t and for eps."""
    return jax.vmap(jax.random.split, out_axes=1)(keys)


# A weighting is what the error in x0 is multiplied by, a function of (SNR, gamma), beside its paper's gamma.
WEIGHTINGS: dict[str, tuple[Callable, float]] = {
    "min_snr": (jnp.minimum, 5.0),  # Hang et al. 2023
    "soft_min_snr": (
        lambda snr, gamma: snr * gamma / (snr + gamma),
        4.0,
    ),  # Crowson et al. 2024, for sigma_data = 0.5
    "p2": (lambda snr, gamma: snr / (1 + snr) ** gamma, 1.0),  # Choi et al. 2022, with k = 1
}
# How many times the squared error in x0 the squared error in each target is.
ERROR_OVER_X0_ERROR: dict[str, Callable] = {
    "eps": lambda snr: snr,
    "x0": jnp.ones_like,
    "v": lambda snr: snr + 1,
    "flow": lambda snr: (jnp.sqrt(snr) + 1) ** 2,
}


def loss_weight(
    weighting: Weighting, target: Target, snr: Float[Array, " b"], gamma: float | None = None
) -> Float[Array, " b"]:
    """What the squared error in `target` is multiplied by: one weighting is the same loss whatever the target.

    simple: 1, the target's own error. Of the error in x0, min_snr: min(SNR, gamma). soft_min_snr: half their harmonic
    mean. p2: SNR / (1 + SNR)^gamma. Where no signal is left all of these are 0. `gamma` None: as in the paper.
    """
    if weighting == "simple":
        return jnp.ones_like(snr)
    of_x0, usual = WEIGHTINGS[weighting]
    return of_x0(snr, usual if gamma is None else gamma) / ERROR_OVER_X0_ERROR[target](snr)
