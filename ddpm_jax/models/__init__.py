"""Networks: one architecture a file, each a frozen dataclass of its hyperparameters with `init` and `apply`.

Flax stays in this package: outside, parameters are a nested dict of float32 arrays and a model is two functions.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax.models.initializers import ParamSpec, draw_parameters

Params = dict[str, Any]

NO_CLASS = -1
"""The label of no class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What every network has; a new one adds its hyperparameters and `module`."""

    image_size: int
    """Height and width of the pictures in pixels."""
    channels: int
    """1 for grey, 3 for RGB."""

    num_classes: int | None = None
    """How many class labels the net takes; None for none."""
    label_dropout: float = 0.0
    """Share of labels hidden while training, in [0, 1); above 0 the net also works without labels, for guidance."""
    learned_variance: bool = False
    """Twice the output channels; the second half is about the log variance of the reverse step."""

    def __post_init__(self):
        """Raises ValueError for settings out of range; `check` says more for each net."""
        for name in (
            "image_size",
            "channels",
            "num_classes",
            "groups",
            "layers_per_level",
            "head_dim",
            "time_embedding_dim",
        ):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name, 0.0) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.label_dropout and self.num_classes is None:
            raise ValueError(
                "label_dropout hides labels, which this net does not have: give num_classes too"
            )
        self.check()

    def check(self) -> None:
        """Raises ValueError where the settings do not fit together."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.image_size, self.image_size, self.channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels * (1 + self.learned_variance)

    @property
    def label_count(self) -> int:
        """Rows of the label embedding: the classes, and one for no label where the net knows that."""
        return (self.num_classes or 0) + (self.label_dropout > 0)

    def module(self) -> nn.Module:
        """The Linen module, called with (xt, t, labels, dropout_keys)."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, float32."""
        return draw_parameters(key, self._param_specs)

    def shapes(self) -> Params:
        """The tree of parameters as shapes and dtypes; nothing is drawn."""
        is_leaf = lambda leaf: isinstance(leaf, ParamSpec)  # noqa: E731
        return jax.tree.map(lambda leaf: leaf.value, self._param_specs, is_leaf=is_leaf)

    def parameter_count(self) -> int:
        """How many numbers the parameters hold; nothing is drawn."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._param_specs))

    def summary(self) -> str:
        """One line a part of the net with its parameter count, and their sum."""
        parts = {
            name: sum(leaf.size for leaf in jax.tree.leaves(part))
            for name, part in self._param_specs.items()
        }
        rows = [*sorted(parts.items()), ("total", sum(parts.values()))]
        return "\n".join(f"  {name:<20}{count:>15,}" for name, count in rows)

    def apply(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Num[Array, "b ..."] | None = None,
        *,
        dropout_keys: Key[Array, " b"] | None = None,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b h w out"]:
        """The network's output in float32, computed in `dtype`; dropout only where each example has a key.

        The condition are labels (b,), or what else the network is made for. A network with label
        dropout takes -1, or no condition at all, for no label.
        """
        if self.label_dropout:
            labels = self.unconditional(len(xt)) if condition is None else condition
            assert labels is not None
            condition = jnp.where(labels == NO_CLASS, self.label_count - 1, labels)
        output: Any = self.module().apply(
            {"params": params}, xt.astype(dtype), t, condition, dropout_keys
        )
        return output.astype(jnp.float32)

    def unconditional(self, n: int) -> Int[Array, " n"] | None:
        """The condition of n images that says nothing; None for a network that was not trained with it."""
        return jnp.full(n, NO_CLASS, jnp.int32) if self.label_dropout else None

    @functools.cached_property
    def _param_specs(self) -> Any:
        def init():
            xt, t = jnp.zeros((1, *self.image_shape)), jnp.zeros(1, jnp.int32)
            return self.module().init(jax.random.key(0), xt, t, t, None)["params"]

        return jax.eval_shape(init)
