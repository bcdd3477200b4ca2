"""Classifier-free guidance: away from what the network says without labels (Ho & Salimans 2022).

output = uncond + w (cond - uncond), the two in one batch of 2B; w = 1 is no guidance.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import check
from ddpm_jax.models import NO_CLASS
from ddpm_jax.prediction import Network, split_output
from ddpm_jax.schedule import per_example


def check_guidance(scale: float, label_dropout: float) -> None:
    """Raises ValueError for guidance of a net that was not trained without labels too."""
    check(
        scale == 1 or label_dropout > 0,
        "guidance needs a net that was trained with and without labels: set model.num_classes and "
        "model.label_dropout before training, or leave guidance_scale at 1",
    )


def guide(
    network: Partial,
    labels: Int[Array, " b"],
    scale: float | Float[Array, ""],
    *,
    interval: tuple[float, float] | None = None,
    rescale: float | None = None,
) -> Network:
    """The network (xt, t) -> output of `network` (xt, t, labels) -> output, guided by `scale` towards `labels`.

    The network must have been trained with label dropout: it is asked with the label -1 too, for "not said".
    `interval` limits guidance to the timesteps lo <= t <= hi (Kynkäänniemi et al. 2024). `rescale` in [0, 1] is the
    share by which the output's deviation in each picture is brought back to that of the conditional one (Eq. 15-16,
    Lin et al. 2024). What a network says of the variance stays that of the labels. A pytree, so that scale, interval,
    share and labels change without recompilation.
    """
    return Partial(_guided, network, labels, jnp.float32(scale), interval, rescale)


def _guided(network, labels, scale, interval, rescale, xt, t):
    both = jnp.stack([labels, jnp.full_like(labels, NO_CLASS)], 1).reshape(-1)
    output = network(jnp.repeat(xt, 2, 0), jnp.repeat(t, 2, 0), both)  # side by side, so that a shard keeps its own
    (cond, log_var), uncond = split_output(output[::2], xt), split_output(output[1::2], xt)[0]
    if interval is not None:
        place = t.astype(scale.dtype)
        inside = (interval[0] <= place) & (place <= interval[1])
        scale = per_example(jnp.where(inside, scale, 1.0), xt)
    guided = uncond + scale * (cond - uncond)
    if rescale is not None:
        ratio = jnp.std(cond, (1, 2, 3), keepdims=True) / jnp.std(guided, (1, 2, 3), keepdims=True)
        guided = guided * (rescale * ratio + 1 - rescale)
    return guided if log_var is None else jnp.concatenate([guided, log_var], -1)
