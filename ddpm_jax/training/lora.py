"""LoRA: train a low-rank change of some layers of any network, and keep the network as it is.

W' = W + s A B (Eq. 3, Hu et al. 2021), with s = alpha / rank. A LoRA is a dict {path: (A, B)} by
the path of a kernel W in the parameters. A linear layer has W (i, o) and A (i, r), a convolution
W (h, w, i, o) and A (h, w, i, r), and both have B (r, o).
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from ddpm_jax import draws
from ddpm_jax.errors import check, check_settings
from ddpm_jax.models import Params

# The underscores keep jaxtyping from comparing the sizes, which differ between layers.
LoraParams = dict[str, tuple[Float[Array, "*_hw _i _r"], Float[Array, "_r _o"]]]
"""{path of a kernel: (A, B)}."""

QUERY_KEY_VALUE_OUT = (
    ("to_q", "to_k", "to_v", "to_out"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
)
"""Names of the linear layers of an attention, in the U-Nets and in the text encoder."""
ATTENTION = {name for names in QUERY_KEY_VALUE_OUT for name in names}
SETS: dict[str, Callable[[str, tuple[int, ...]], bool]] = {
    "attention": lambda module, shape: module in ATTENTION,
    "linear": lambda module, shape: len(shape) == 2,
    "conv": lambda module, shape: len(shape) == 4 and shape[0] > 1,
}
"""{name of a set of layers: whether a layer of this name and shape is one of them}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Train a LoRA on the frozen weights of --init-from, instead of all parameters."""

    rank: int = 0
    """Rank of each change; 0 trains all parameters."""
    alpha: float | None = None
    """The change is multiplied by alpha / rank; None for alpha = rank."""
    targets: tuple[str, ...] = ("attention",)
    """Layers: attention, linear or conv (larger than 1x1), or patterns of parts of paths, such as
    to_v down_*/conv1."""

    def __post_init__(self):
        check_settings(self, "lora.")
        check(self.rank >= 0, f"lora.rank must be at least 0, not {self.rank}.")
        check(
            self.alpha is None or self.alpha > 0,
            f"lora.alpha must be positive, not {self.alpha}.",
        )
        check(len(self.targets) > 0, "lora.targets names no layer: give one, such as attention.")
        check(
            self.rank > 0 or (self.alpha is None and self.targets == Lora.targets),
            "lora.alpha and lora.targets are for a LoRA, but lora.rank is 0: set it, such as 4.",
        )

    @property
    def scale(self) -> float:
        """The factor s = alpha / rank of a change; 1 without a LoRA."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def trained_shapes(self, shapes: Params) -> Params:
        """Shapes of the trained parameters: the LoRA's or, with rank 0, the network's."""
        if not self.rank:
            return shapes
        return jax.eval_shape(lambda: init_lora(draws.make_key(0), shapes, self))


def find_targets(params: Params, targets: Sequence[str]) -> list[str]:
    """The paths of the kernels that `targets` name, in order. `params` may be shapes.

    A target is a name of `SETS`, or a pattern with `*` and `?` that matches one or more whole parts
    of a path; `*` also matches across parts. Raise ValueError for a target that matches nothing.
    The message lists the paths, with `*` for each number.
    """
    shapes = lora_shapes(params)
    found: set[str] = set()
    for target in targets:
        matched = {path for path, shape in shapes.items() if _matches(target, path, shape)}
        if not matched:
            layers = sorted({re.sub(r"\d+", "*", _layer(path)) for path in shapes})
            check(
                bool(layers),
                "A LoRA changes matrices and convolutions called kernel, and the network has none.",
            )
            raise ValueError(
                f"The LoRA target {target!r} matches no layer: choose {', '.join(SETS)}, or one of "
                f"{', '.join(layers)}."
            )
        found |= matched
    return [path for path in shapes if path in found]


def lora_shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """The shapes of all kernels that a LoRA may change, by path. `params` may be shapes."""
    return {path: leaf.shape for path, leaf in by_path(params).items() if _fits(path, leaf)}


def by_path(params: Params) -> dict[str, Any]:
    """The leaves of a tree by their path, such as "conv_in/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _layer(path: str) -> str:
    return path.removesuffix("/kernel")


def _fits(path: str, leaf: Any) -> bool:
    """Whether a leaf is the kernel of a linear layer or of a convolution with a square window."""
    is_square = leaf.ndim == 4 and leaf.shape[0] == leaf.shape[1]
    return path.endswith("/kernel") and (leaf.ndim == 2 or is_square)


def _matches(target: str, path: str, shape: tuple[int, ...]) -> bool:
    # Some networks have modules with dots in their names, which separate parts as slashes do.
    parts = _layer(path).replace("/", ".")
    if target in SETS:
        return SETS[target](parts.rpartition(".")[2], shape)
    return fnmatchcase(f".{parts}.", f"*.{target.replace('/', '.')}.*")


def init_lora(key: Key[Array, ""], params: Params, settings: Lora) -> LoraParams:
    """Draw A from N(0, 1 / rank^2), with B = 0: the network stays the same. `params` may be shapes.

    A depends on the key and on the path of its kernel alone. Raise ValueError as `find_targets`.
    """
    check(settings.rank > 0, "A LoRA needs a rank: set lora.rank, such as 4.")
    leaves = by_path(params)
    return {
        path: _init_pair(draws.fold_in_name(key, path), leaves[path].shape, settings.rank)
        for path in find_targets(params, settings.targets)
    }


def _init_pair(key: Key[Array, ""], shape: tuple[int, ...], rank: int) -> tuple[Array, Array]:
    *window, features_in, features_out = shape
    a = draws.normal(key, (*window, features_in, rank)) / rank
    return a, jnp.zeros((rank, features_out), jnp.float32)


def merge_lora(params: Params, lora: LoraParams, scale: ArrayLike = 1.0) -> Params:
    """The parameters W + scale A B. Several LoRAs add up, one call each; `scale` may be traced.

    Raise ValueError unless the paths and shapes of the LoRA fit the parameters.
    """
    missing = sorted(set(lora) - set(by_path(params)))
    check(not missing, f"The LoRA is for other parameters: there is no {', '.join(missing[:4])}.")

    def merge(path, w):
        path = _name(path)
        return _add(path, w, *lora[path], scale) if path in lora else w

    return jax.tree_util.tree_map_with_path(merge, params)


def _add(path: str, w: Any, a: Array, b: Array, scale: ArrayLike) -> Array:
    check(
        jnp.shape(a)[-1:] == jnp.shape(b)[:1],
        f"The ranks of the LoRA differ for {path}: A is {jnp.shape(a)} and B is {jnp.shape(b)}.",
    )
    change = jnp.asarray(scale, jnp.float32) * jnp.tensordot(a, b, 1, precision="highest")
    check(
        change.shape == w.shape,
        f"The LoRA changes {path} as an array of {change.shape}, but it has {w.shape}.",
    )
    return (jnp.asarray(w, jnp.float32) + change).astype(w.dtype)


def lora_loss(loss: Callable, scale: float) -> Callable:
    """Make the loss (lora, keys, batch, params) of a loss (params, keys, batch).

    `params` are an argument of the step, so that compiled programs do not hold them.
    """

    def merged_loss(lora, keys, batch, params):
        return loss(merge_lora(params, lora, scale), keys, batch)

    return merged_loss
