"""Classifier-free guidance: extrapolate from the unconditional output (Ho & Salimans 2022).

output = uncond + w (cond - uncond)

Both outputs are computed in one batch of twice the size. With w = 1 there is no guidance: the
paper's w is this one minus 1.

A network here is a function (xt, t, condition) -> output. A condition is None or a pytree of arrays
whose first axis is the batch. `bind` and `guide` make the networks (xt, t) -> output that losses
and denoisers take.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.diffusion.prediction import Network, split_output
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.errors import check, check_ascending, check_rows

Condition = Any


def bind(network: Callable, condition: Condition) -> Network:
    """The network (xt, t) -> output of `network` (xt, t, condition) -> output, as a pytree.

    The network raises ValueError unless the condition has one row per image.
    """
    network = network if isinstance(network, Partial) else Partial(network)
    return Partial(_call_with_condition, network, condition)


def _call_with_condition(network, condition, xt, t):
    check_rows(xt.shape[0], condition=condition)
    return network(xt, t, condition)


def guide(
    network: Callable,
    condition: Condition,
    unconditional: Condition,
    scale: float | Float[Array, "*b"],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float | None = None,
) -> Network:
    """The network (xt, t) -> output of `network` (xt, t, condition) -> output, guided by `scale`.

    `unconditional` has the structure and shapes of `condition`; the network must have been trained
    with it too (`Model.unconditional`). There is one `scale`, or one per image. `interval` limits
    guidance to timesteps lo <= t <= hi (Kynkäänniemi et al. 2024). `rescale` in [0, 1] rescales
    each guided output: 0 keeps its standard deviation, 1 gives it the conditional one's (Eq. 15-16,
    Lin et al. 2024). The log variance is the conditional one. The result is a pytree: scale,
    interval, rescale and conditions change without recompilation. Raise ValueError for an interval
    that descends and without `unconditional`; the network raises it unless both conditions have one
    row per image.
    """
    check_ascending(interval=interval)
    check(
        condition is None or unconditional is not None,
        "Guidance needs the unconditional condition too: train the network with label_dropout, and "
        "give Model.unconditional.",
    )
    network = network if isinstance(network, Partial) else Partial(network)
    scale = jnp.float32(scale)
    return Partial(_guided, network, condition, unconditional, scale, interval, rescale)


def _guided(network, condition, unconditional, scale, interval, rescale, xt, t):
    check_rows(xt.shape[0], condition=condition, unconditional=unconditional)
    # Conditional and unconditional rows alternate, so that each shard holds both rows of an image.
    both = jax.tree.map(_interleave, condition, unconditional)
    output = network(jnp.repeat(xt, 2, 0), jnp.repeat(t, 2, 0), both)  # (2b, h, w, out)
    cond, log_var = split_output(output[::2], xt)
    uncond, _ = split_output(output[1::2], xt)
    if scale.ndim:
        check_rows(xt.shape[0], scale=scale)
    scale = per_example(scale, xt)  # (1, 1, 1, 1) or (b, 1, 1, 1)
    if interval is not None:
        float_t = t.astype(scale.dtype)
        inside = (interval[0] <= float_t) & (float_t <= interval[1])
        scale = jnp.where(per_example(inside, xt), scale, 1.0)
    guided = uncond + scale * (cond - uncond)
    if rescale is not None:
        # The ratio is the same with n and with n - 1 as both divisors.
        cond_std = jnp.std(cond, (1, 2, 3), keepdims=True)  # (b, 1, 1, 1)
        std = jnp.std(guided, (1, 2, 3), keepdims=True)
        # A constant output, as of a network that starts at zero, is left as it is.
        ratio = jnp.where(std > 0, cond_std / jnp.where(std > 0, std, 1), 1)
        guided = guided * (rescale * ratio + 1 - rescale)
    return guided if log_var is None else jnp.concatenate([guided, log_var], -1)


def _interleave(first, second):
    return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])
