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
