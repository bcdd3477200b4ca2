"""What a network's output says about clean data and noise: the pair (x0, eps), whichever of them it predicts.

xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps                              Eq. 4, Ho et al. 2020
v  = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0                              Salimans & Ho 2022, appendix D
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Num

from ddpm_jax.schedule import NoiseSchedule, per_example

Target = Literal["eps", "x0", "v"]


class Prediction(NamedTuple):
    """Estimates of clean data and of noise (b, h, w, c), consistent with each other, after clipping too.

    `log_var` is the predicted log variance of the reverse step, for networks that learn it.
    """

    x0: Float[Array, "b h w c"]
    eps: Float[Array, "b h w c"]
    log_var: Float[Array, "b h w c"] | None = None


Denoiser = Callable[[Float[Array, "b h w c"], Num[Array, ""]], Prediction]
Network = Callable[[Float[Array, "b h w c"], Num[Array, " b"]], Float[Array, "b h w c"]]


def from_eps(xt: Array, eps: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array) -> Prediction:
    """The prediction of a network that outputs eps (Eq. 15, Ho et al. 2020).

    Here and below xt and the output are (b, h, w, c), the square roots scalars or (b, 1, 1, 1).
    """
    return Prediction((xt - sqrt_one_minus_alpha_bar * eps) / sqrt_alpha_bar, eps)


def from_x0(xt: Array, x0: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array) -> Prediction:
    """The prediction of a network that outputs x0."""
    return Prediction(x0, (xt - sqrt_alpha_bar * x0) / sqrt_one_minus_alpha_bar)


def from_v(xt: Array, v: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array) -> Prediction:
    """The prediction of a network that outputs v."""
    x0 = sqrt_alpha_bar * xt - sqrt_one_minus_alpha_bar * v
    return Prediction(x0, sqrt_one_minus_alpha_bar * xt + sqrt_alpha_bar * v)


FROM_OUTPUT = {"eps": from_eps, "x0": from_x0, "v": from_v}


def regression_target(target: Target, x0: Array, eps: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array):
    """What the network's output (b, h, w, c) is trained towards."""
    v = sqrt_alpha_bar * eps - sqrt_one_minus_alpha_bar * x0
    return {"eps": eps, "x0": x0, "v": v}[target]


def make_denoiser(
    schedule: NoiseSchedule, network: Network, target: Target = "eps", clip_x0: float | None = 1.0
) -> Denoiser:
    """The function (xt, t) -> Prediction of a `network` (xt, t) -> output that was trained for `target`.

    `clip_x0` limits x0 to [-clip_x0, clip_x0] and makes eps follow; None leaves it. The result is a pytree
    (a `jax.tree_util.Partial`): where `network` is one too, parameters and limits pass through jit as arguments.
    """
    if not isinstance(network, Partial):
        network = Partial(network)
    return Partial(_denoise, Partial(FROM_OUTPUT[target]), schedule, network, clip_x0)


def _denoise(from_output, schedule: NoiseSchedule, network: Network, clip_x0, xt, t) -> Prediction:
    t = jnp.broadcast_to(t, xt.shape[:1])
    coefficients = per_example(schedule.at(t), xt)
    prediction = from_output(xt, network(xt, t), *coefficients)
    if clip_x0 is None:
        return prediction
    return from_x0(xt, jnp.clip(prediction.x0, -clip_x0, clip_x0), *coefficients)
