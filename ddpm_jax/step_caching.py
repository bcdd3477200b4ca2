"""Step caching: most steps of a walk run the shallow part of the U-Net alone, on deep features of an earlier step.

DeepCache (Ma, Fang & Wang 2024, section 3): what the coarse levels say changes little from step to step, so at every
N-th step the whole net runs and the input of its last blocks is kept, and at the N - 1 steps between only these blocks
run. The features are part of the sampler's memory: the walk stays one `lax.scan`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Num

from ddpm_jax.errors import check
from ddpm_jax.models import Model, Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.prediction import Denoiser
from ddpm_jax.samplers import Sampler


def check_net(model: Model, depth: int) -> None:
    """Raises ValueError for a net that has no such shallow part."""
    if not isinstance(model, UNet):
        raise ValueError(f"step caching is for the unet, not for {type(model).__name__}: leave cache_interval out")
    ncsnpp = "skip" in (model.down_levels[0][2], model.up_levels[0][2])
    check(not ncsnpp, "step caching is for a unet whose finest level is not of kind skip: leave cache_interval out")
    most = model.layers_per_level
    check(0 <= depth <= most, f"cache_depth must be from 0 to the {most} blocks of a level of this net, not {depth}")


def check_sampler(sampler: Sampler) -> None:
    """Raises ValueError for a sampler that asks the network more than once a step."""
    check(
        sampler.evaluations == 1 and not sampler.extra,
        "step caching needs a sampler of one evaluation a step, such as ddim or unipc: set cache_interval to None",
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """((params, fresh), xt, t, labels, deep) -> (output, deep): the net from `deep` on, or where `fresh` the whole.

    Without `deep` it is the whole net too. Raises ValueError as `check_net` does.
    """

    model: Model
    depth: int

    def __post_init__(self):
        check_net(self.model, self.depth)

    def __call__(
        self,
        whole: tuple[Params, Bool[Array, ""] | None],
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels: Num[Array, "b ..."] | None = None,
        deep: Float[Array, "b h w d"] | None = None,
    ) -> tuple[Float[Array, "b h w out"], Float[Array, "b h w d"]]:
        params, fresh = whole
        assert isinstance(self.model, UNet)
        apply = partial(self.model.apply_and_keep, params, xt, t, labels, depth=self.depth)
        return apply() if deep is None else jax.lax.cond(fresh, apply, lambda: apply(deep=deep))


@dataclasses.dataclass(frozen=True)
class Apply:
    """A net's `apply` (params, xt, t, labels) -> output, by an `Evaluation`, which a cached walk can find and use."""

    evaluate: Callable

    def __call__(self, params: Params, *arrays: Array, **named: Array | None) -> Float[Array, "b h w out"]:
        return self.evaluate((params, None), *arrays, **named)[0]


def cached(sampler: Sampler, interval: int, denoise: Denoiser, xT: Float[Array, "b h w c"]) -> Sampler:
    """`sampler` with the whole net run at its first step and every `interval` steps from there, for walks from xT.

    Steps are counted in its memory, so that a walk may begin anywhere and be walked in parts, and a walk that turns
    starts with the whole net. `denoise`, as those that the steps get, is of a network whose `apply` is an `Apply`.
    Raises ValueError where it is not, and as `check_sampler` does.
    """
    check_sampler(sampler)
    shapes = _features.eval_shape(denoise, xT)
    check(len(shapes) == 1, "step caching needs a denoiser that asks one network once, by step_caching.Apply")
    rows, *_, channels = shapes[0].shape
    like = jnp.zeros((1, rows // len(xT), 1, 1, channels), shapes[0].dtype)
    init, step = Partial(_init, sampler.init, like), Partial(_step, sampler, interval)
    return dataclasses.replace(sampler, init=init, step=step)


def _init(init, like, xT):
    """The sampler's own memory, no features, made of xT so that they lie on its devices, and the first step's number.

    A guided network has two evaluations a picture, side by side, so that a shard keeps its own.
    """
    deep = (xT[:, None, :, :, :1].astype(like.dtype) * like).reshape(-1, *xT.shape[1:3], like.shape[-1])
    return init(xT), deep, jnp.int32(0)


def _step(sampler, interval, keys, denoise, xt, row, memory):
    own, deep, place = memory
    denoise, kept = _keeping(denoise, place == 0, deep)
    x_next, own = sampler.step(keys, denoise, xt, row, own)
    (deep,) = kept
    return x_next, (own, deep, (place + 1) % interval)


@jax.jit
def _features(denoise, xT):
    denoise, kept = _keeping(denoise)
    denoise(xT, jnp.int32(0))
    return kept


def _keeping(denoise: Denoiser, fresh: Array | None = None, deep: Array | None = None) -> tuple[Denoiser, list[Array]]:
    """The denoiser on its network from `deep` on, and a list that its features join when it is called."""
    kept: list[Array] = []

    def keeping(node: Any) -> Any:
        if not _is_network(node):
            return node
        (params, *bound), evaluate = node.args, node.func.evaluate

        def network(*arrays, **named):
            output, features = evaluate((params, fresh), *bound, *arrays, **node.keywords, **named, deep=deep)
            kept.append(features)
            return output

        return network

    return jax.tree.map(keeping, denoise, is_leaf=_is_network), kept


def _is_network(node: Any) -> bool:
    return isinstance(node, Partial) and isinstance(node.func, Apply)
