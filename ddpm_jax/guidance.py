"""Classifier-free guidance: away from what the network says without labels (Ho & Salimans 2022).

output = uncond + w (cond - uncond), the two in one batch of 2B; w = 1 is no guidance.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ddpm_jax.models import NO_CLASS
from ddpm_jax.prediction import Network
from ddpm_jax.schedule import per_example


def guide(
    network: Partial,
    labels: Int[Array, " b"],
    scale: float | Float[Array, ""],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float | None = None,
) -> Network:
    """The network (xt, t) -> output of `network` (xt, t, labels) -> output, guided by `scale` towards `labels`.

    `interval` limits guidance to the timesteps lo <= t <= hi (Kynkäänniemi et al. 2024). `rescale` in [0, 1] is the
    share by which the output's deviation in each picture is brought back to that of the conditional one (Eq. 15-16,
    Lin et al. 2024). A pytree, so that scale, interval, share and labels change without recompilation.
    """
    return Partial(_guided, network, labels, jnp.float32(scale), interval, rescale)


def _guided(network, labels, scale, interval, rescale, xt, t):
    both = jnp.stack([labels, jnp.full_like(labels, NO_CLASS)], 1).reshape(-1)
    output = network(jnp.repeat(xt, 2, 0), jnp.repeat(t, 2, 0), both)  # side by side, so that a shard keeps its own
    cond, uncond = output[::2], output[1::2]
    if interval is not None:
        place = t.astype(scale.dtype)
        inside = (interval[0] <= place) & (place <= interval[1])
        scale = per_example(jnp.where(inside, scale, 1.0), xt)
    guided = uncond + scale * (cond - uncond)
    if rescale is None:
        return guided
    ratio = jnp.std(cond, (1, 2, 3), keepdims=True) / jnp.std(guided, (1, 2, 3), keepdims=True)
    return guided * (rescale * ratio + 1 - rescale)
