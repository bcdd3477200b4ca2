"""Estimates of clean data and noise, (x0, eps), from a network's output for any target.

xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps                        Eq. 4, Ho et al. 2020
v  = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0               Salimans & Ho 2022, appendix D
"""

import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Num

from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example
from ddpm_jax.errors import check, check_at_least, check_bound, check_choice

Target = Literal["eps", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """Estimates of clean data and of noise (b, h, w, c), which satisfy Eq. 4.

    They satisfy it after clipping too, unless `make_denoiser` keeps the network's eps. `log_var` is
    the network's output for the variance of the reverse step, or None. It is the log variance
    itself (learned), or it interpolates from -1 (fixed_small) to 1 (fixed_large):
    `posterior.learned_log_variance`.
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
    """The prediction of a network that outputs the velocity u = eps - x0 of rectified flow.

    u is the slope of the straight path x = (1 - s) x0 + s eps, with noise fraction s, where
    x = xt / (sqrt_alpha_bar + sqrt_one_minus_alpha_bar) (Liu et al. 2023).
    """
    total = sqrt_alpha_bar + sqrt_one_minus_alpha_bar
    x0 = (xt - sqrt_one_minus_alpha_bar * u) / total
    return Prediction(x0, (xt + sqrt_alpha_bar * u) / total)


FROM_OUTPUT = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}


def check_target(target: str) -> None:
    """Raise ValueError for a target that a network's output cannot be read for as it is."""
    check(
        target != "edm",
        "Target edm is that of a preconditioned network: use Objective.network_and_target.",
    )
    check_choice(FROM_OUTPUT, target=target)


def regression_target(
    target: Target, x0: Array, eps: Array, sqrt_alpha_bar: Array, sqrt_one_minus_alpha_bar: Array
):
    """The value (b, h, w, c) that the network's output is trained towards.

    Raise ValueError for an unknown target (`check_target`).
    """
    check_target(target)
    v = sqrt_alpha_bar * eps - sqrt_one_minus_alpha_bar * x0
    return {"eps": eps, "x0": x0, "v": v, "flow": eps - x0}[target]


def split_output(output: Array, xt: Array) -> tuple[Array, Array | None]:
    """The output for the target and the output for the log variance.

    The latter is None unless the output has twice as many channels as xt. Raise ValueError for an
    output of any other shape.
    """
    channels = xt.shape[-1]
    has_log_var = output.shape == (*xt.shape[:-1], 2 * channels)
    check(
        has_log_var or output.shape == xt.shape,
        f"The network's output must have the shape of its input {xt.shape}, or twice its channels, "
        f"not {output.shape}.",
    )
    log_var = output[..., channels:] if has_log_var else None
    return output[..., :channels], log_var


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
    """The denoiser (xt, t) -> Prediction of a `network` (xt, t) -> output trained for `target`.

    `clip_x0` clips x0 to [-clip_x0, clip_x0] and recomputes eps from it; None does not clip.
    `dynamic_threshold` p in (0, 1] overrides it: x0 is clipped to the p-quantile of |x0| in each
    image, if above 1, and divided by it (section 2.3, Saharia et al. 2022). `threshold_limit` is
    the maximum of that quantile. `keep_eps` keeps the network's eps, as diffusers' DDIM does.
    The result is a pytree (a `jax.tree_util.Partial`). If `network` is one too, its parameters and
    the limits pass through jit as arguments. Raise ValueError for a limit out of range, for an
    unknown target, for eps with a schedule that ends at zero SNR (unless it is traced), and for
    edm, which `Objective.network_and_target` turns into x0.
    """
    check_target(target)
    check_bound(clip_x0=clip_x0)
    check_threshold(dynamic_threshold, threshold_limit)
    last = schedule.sqrt_alpha_bar[-1]
    check(
        target != "eps" or isinstance(last, jax.core.Tracer) or float(last) > 0,
        "At zero SNR, eps does not determine x0: use target v, x0 or flow, or another schedule.",
    )
    if not isinstance(network, Partial):
        network = Partial(network)
    limit = None if clip_x0 is None else Partial(_clip, clip_x0)
    if dynamic_threshold is not None:
        limit = Partial(_divide_by_quantile, dynamic_threshold, threshold_limit)
    limited_eps = Partial(_network_eps if keep_eps else _eps_from_x0)
    return Partial(_denoise, Partial(FROM_OUTPUT[target]), limit, limited_eps, schedule, network)


def check_threshold(quantile: Any, limit: Any) -> None:
    """Raise ValueError for a dynamic threshold out of range. None passes, and an array unread."""
    if isinstance(quantile, numbers.Real):
        check(
            0 < float(quantile) <= 1,
            f"dynamic_threshold must be above 0 and at most 1, not {quantile}.",
        )
    check(limit is None or quantile is not None, "threshold_limit needs a dynamic_threshold.")
    check_at_least(1, threshold_limit=limit)


def _denoise(
    from_output, limit, limited_eps, schedule: NoiseSchedule, network: Network, xt, t
) -> Prediction:
    t = jnp.broadcast_to(t, xt.shape[:1])
    coefficients = per_example(schedule.signal_and_noise(t), xt)
    output, log_var = split_output(network(xt, t), xt)
    prediction = from_output(xt, output, *coefficients)._replace(log_var=log_var)
    if limit is None:
        return prediction
    x0 = limit(prediction.x0)
    return Prediction(x0, limited_eps(xt, x0, prediction.eps, *coefficients), log_var)


def _clip(bound, x0):
    return jnp.clip(x0, -bound, bound)


def _divide_by_quantile(quantile, maximum, x0):
    size = jnp.quantile(jnp.abs(x0), quantile, axis=(1, 2, 3), keepdims=True)  # (b, 1, 1, 1)
    bound = jnp.clip(size, 1.0, maximum)
    return jnp.clip(x0, -bound, bound) / bound


def _eps_from_x0(xt, x0, eps, *coefficients):
    return from_x0(xt, x0, *coefficients).eps


def _network_eps(xt, x0, eps, *coefficients):
    return eps
