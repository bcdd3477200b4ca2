"""What a network's output says about clean data and noise: the pair (x0, eps), whichever of them it predicts.

xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps                              Eq. 4, Ho et al. 2020
v  = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0                              Salimans & Ho 2022, appendix D
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example

Target = Literal["eps", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """Estimates of clean data and of noise (b, h, w, c), consistent with each other, after clipping too.

    `log_var` is what a network that learns it says of the log variance of the reverse step: the log variance itself,
    or a place from -1 to 1 between those of fixed_small and fixed_large (`posterior.learned_log_variance`).
    """

    x0: Float[Array, "b h w c"]
    eps: Float[Array, "b h w c"]
    log_var: Float[Array, "b h w c"] | None = None


Denoiser = Callable[[Float[Array, "b h w c"], Num[Array, ""]], Prediction]
Network = Callable[[Float[Array, "b h w c"], Num[Array, " b"]], Float[Array, "b h w c"]]


def from_eps(
    xt: Array, eps: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
) -> Prediction:
    """The prediction of a network that outputs eps (Eq. 15, Ho et al. 2020).

    Here and below xt and the output are (b, h, w, c), the square roots scalars or (b, 1, 1, 1).
    """
    return Prediction((xt - sqrt_one_minus_alpha_bar * eps) / sqrt_alpha_bar, eps)


def from_x0(
    xt: Array, x0: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
) -> Prediction:
    """The prediction of a network that outputs x0."""
    return Prediction(x0, (xt - sqrt_alpha_bar * x0) / sqrt_one_minus_alpha_bar)


def from_v(
    xt: Array, v: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
) -> Prediction:
    """The prediction of a network that outputs v."""
    x0 = sqrt_alpha_bar * xt - sqrt_one_minus_alpha_bar * v
    return Prediction(x0, sqrt_one_minus_alpha_bar * xt + sqrt_alpha_bar * v)


def from_flow(
    xt: Array, u: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
) -> Prediction:
    """The prediction of a network that outputs the velocity u of rectified flow.

    On its straight path x = (1 - s) x0 + s eps, which is xt / (sqrt_alpha_bar + sqrt_one_minus_alpha_bar), u is
    eps - x0 and s the share of noise (Liu et al. 2023).
    """
    total = sqrt_alpha_bar + sqrt_one_minus_alpha_bar
    return Prediction(
        (xt - sqrt_one_minus_alpha_bar * u) / total, (xt + sqrt_alpha_bar * u) / total
    )


FROM_OUTPUT = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}


def regression_target(
    target: Target, x0: Array, eps: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
):
    """What the network's output (b, h, w, c) is trained towards."""
    v = sqrt_alpha_bar * eps - sqrt_one_minus_alpha_bar * x0
    return {"eps": eps, "x0": x0, "v": v, "flow": eps - x0}[target]


def split_output(output: Array, xt: Array) -> tuple[Array, Array | None]:
    """The regression output and what is said of the variance: a network that learns it has twice the channels."""
    channels = xt.shape[-1]
    return output[..., :channels], output[..., channels:] if output.shape[
        -1
    ] == 2 * channels else None


def make_denoiser(
    schedule: NoiseSchedule,
    network: Network,
    target: Target = "eps",
    clip_x0: float | None = 1.0,
    *,
    dynamic_threshold: float | None = None,
    threshold_limit: float | None = None,
    keep_eps: bool = False,
) -> Denoiser:
    """The function (xt, t) -> Prediction of a `network` (xt, t) -> output that was trained for `target`.

    `clip_x0` limits x0 to [-clip_x0, clip_x0] and makes eps follow; None leaves it. `dynamic_threshold` p in (0, 1]
    takes its place: |x0| is limited to its p-quantile in the picture, if above 1, and divided by it (section 2.3,
    Saharia et al. 2022); `threshold_limit` is the most that the quantile counts. `keep_eps` leaves eps as the network
    had it, as diffusers' DDIM does. The result is a pytree (a `jax.tree_util.Partial`): where `network` is one too,
    parameters and limits pass through jit as arguments.
    """
    if not isinstance(network, Partial):
        network = Partial(network)
    limit = None if clip_x0 is None else Partial(_clip, clip_x0)
    if dynamic_threshold is not None:
        limit = Partial(_divide_by_quantile, dynamic_threshold, threshold_limit)
    eps_after = Partial(_keep if keep_eps else _follow)
    return Partial(_denoise, Partial(FROM_OUTPUT[target]), limit, eps_after, schedule, network)


def _denoise(
    from_output, limit, eps_after, schedule: NoiseSchedule, network: Network, xt, t
) -> Prediction:
    t = jnp.broadcast_to(t, xt.shape[:1])
    coefficients = per_example(schedule.signal_and_noise(t), xt)
    output, log_var = split_output(network(xt, t), xt)
    prediction = from_output(xt, output, *coefficients)._replace(log_var=log_var)
    if limit is None:
        return prediction
    x0 = limit(prediction.x0)
    return Prediction(x0, eps_after(xt, x0, prediction.eps, *coefficients), log_var)


def _clip(bound, x0):
    return jnp.clip(x0, -bound, bound)


def _divide_by_quantile(share, most, x0):
    size = jnp.quantile(jnp.abs(x0), share, axis=(1, 2, 3), keepdims=True)
    bound = jnp.clip(size, 1.0, most)
    return jnp.clip(x0, -bound, bound) / bound


def _follow(xt, x0, eps, *coefficients):
    return from_x0(xt, x0, *coefficients).eps


def _keep(xt, x0, eps, *coefficients):
    return eps
