"""Networks: one architecture a file, each a frozen dataclass of its hyperparameters with `init` and `apply`.

Flax stays in this package: outside, parameters are a nested dict of float32 arrays and a model is two functions.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax.models.initial import draw_parameters

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What every network has; a new one adds its hyperparameters and `module`."""

    image_size: int
    """Height and width of the pictures in pixels."""
    channels: int
    """1 for grey, 3 for RGB."""

    num_classes: int | None = None
    """How many class labels the net takes; None for none."""

    def __post_init__(self):
        """Raises ValueError for settings out of range; `check` says more for each net."""
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {self.channels}")
        for name in ("image_size", "num_classes", "groups", "layers_per_level", "head_dim", "time_embedding_dim"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= getattr(self, "dropout", 0.0) < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        self.check()

    def check(self) -> None:
        """Raises ValueError where the settings do not fit together."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.image_size, self.image_size, self.channels

    def module(self) -> nn.Module:
        """The Linen module, called with (xt, t, labels, dropout_keys)."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, float32."""
        return draw_parameters(key, self._undrawn())

    def parameter_count(self) -> int:
        """How many numbers the parameters hold; nothing is drawn."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._undrawn()))

    def summary(self) -> str:
        """One line a part of the net with its parameter count, and their sum."""
        parts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in self._undrawn().items()}
        rows = [*sorted(parts.items()), ("total", sum(parts.values()))]
        return "\n".join(f"  {name:<20}{count:>15,}" for name, count in rows)

    def apply(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels: Int[Array, " b"] | None = None,
        *,
        dropout_keys: Key[Array, " b"] | None = None,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b h w c"]:
        """The network's output in float32, computed in `dtype`; dropout only where each example has a key."""
        output: Any = self.module().apply({"params": params}, xt.astype(dtype), t, labels, dropout_keys)
        return output.astype(jnp.float32)

    def _undrawn(self) -> Any:
        def init():
            xt, t = jnp.zeros((1, *self.image_shape)), jnp.zeros(1, jnp.int32)
            return self.module().init(jax.random.key(0), xt, t, t, None)["params"]

        return jax.eval_shape(init)
