"""Networks: one architecture per file, a frozen dataclass of its settings with `init` and `apply`.

The layers, attention, initialisers and CPU kernels that the architectures share are here too.
Only this package uses Flax: outside, parameters are a nested dict of float32 arrays, and a network
is the two functions `init` and `apply`. Imports only `draws`, `errors` and `image_size`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ddpm_jax import draws
from ddpm_jax.errors import check_rows, check_shape
from ddpm_jax.image_size import ImageSize, sides, simplest
from ddpm_jax.models.attention import AttentionKind, collect_attention
from ddpm_jax.models.initializers import draw_parameters, draw_split_parameters, is_spec

Params = dict[str, Any]

NO_CLASS = -1
"""The label that stands for no class."""


class Network:
    """Base class of everything that has parameters: draws, describes and counts them.

    A subclass is a frozen dataclass of hyperparameters and adds `module` and `example_inputs`.
    """

    def module(self) -> nn.Module:
        """The Linen module that holds the parameters."""
        raise NotImplementedError

    def example_inputs(self) -> tuple:
        """Small inputs of the module, which determine the shapes of the parameters."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""], shardings: Params | None = None) -> Params:
        """Draw fresh float32 parameters; with `shardings`, each array on the devices of its own."""
        if shardings is None:
            return draw_parameters(key, self._param_specs)
        return draw_split_parameters(key, self._param_specs, shardings)

    def shapes(self) -> Params:
        """The shapes and dtypes of the parameters, without drawing them."""
        return jax.tree.map(lambda spec: spec.value, self._param_specs, is_leaf=is_spec)

    def parameter_count(self) -> int:
        """The number of scalar parameters, without drawing them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._param_specs))

    def summary(self) -> str:
        """A table of the parameter count of each top-level module, and their sum."""
        sizes = {
            name: sum(leaf.size for leaf in jax.tree.leaves(module))
            for name, module in self._param_specs.items()
        }
        rows = [*sorted(sizes.items()), ("total", sum(sizes.values()))]
        return "\n".join(f"  {name:<20}{size:>15,}" for name, size in rows)

    @property
    def _param_specs(self) -> Any:
        """The nested dict of `ParamSpec`s that `draw_parameters` takes."""
        # The specs of a network in an explicit mesh hold the mesh.
        return _param_specs(self, jax.sharding.get_abstract_mesh())


@functools.lru_cache(maxsize=64)
def _param_specs(network: Network, _mesh: jax.sharding.AbstractMesh) -> Any:
    """Trace the initialisation once for all equal networks."""

    def init():
        return network.module().init(draws.make_key(0), *network.example_inputs())["params"]

    return jax.eval_shape(init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetwork(Network):
    """Base class of the networks of images. A subclass adds its hyperparameters."""

    image_size: ImageSize
    """Height and width of the images in pixels; one number for squares."""
    channels: int
    """1 for grey, 3 for RGB, any number for arrays."""

    def __post_init__(self):
        """Raise ValueError if a setting is out of range or `check` finds a conflict."""
        object.__setattr__(self, "image_size", simplest(self.image_size))
        for name in (
            "channels",
            "num_classes",
            "groups",
            "layers_per_level",
            "head_dim",
            "time_embedding_dim",
            "text_width",
            "text_layers",
            "text_heads",
        ):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        for name in ("dropout", "label_dropout"):
            rate = getattr(self, name, 0.0)
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), not {rate}.")
        self.check()

    def check(self) -> None:
        """Raise ValueError if the settings contradict each other. Subclasses override this."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of one image."""
        return *sides(self.image_size), self.channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(ImageNetwork):
    """Base class of the networks that denoise images. A subclass adds its hyperparameters."""

    denoises_latents: ClassVar[bool] = False
    """Whether the images are latents, whose size and channels are those of the network."""

    num_classes: int | None = None
    """Number of class labels; None for a network without labels."""
    label_dropout: float = 0.0
    """Fraction of labels dropped in training, in [0, 1). Guidance needs a value above 0."""
    learned_variance: bool = False
    """Double the output channels; the second half sets the log variance of the reverse step."""

    def __post_init__(self):
        super().__post_init__()
        if self.label_dropout and not self.takes_condition:
            raise ValueError(
                "label_dropout drops labels, but this network has none: set num_classes too."
            )

    @property
    def takes_condition(self) -> bool:
        """Whether the network has labels, or another condition."""
        return self.num_classes is not None

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.channels * (1 + self.learned_variance)

    @property
    def label_count(self) -> int:
        """The number of rows of the label embedding: one per class, plus one for no class.

        The last row exists only with label dropout.
        """
        return (self.num_classes or 0) + (self.label_dropout > 0)

    def module(self) -> nn.Module:
        """The Linen module, called with (xt, t, labels, dropout_keys)."""
        raise NotImplementedError

    def example_inputs(self) -> tuple:
        xt = jnp.zeros((1, *self.image_shape), jnp.float32)
        t = jnp.zeros(1, jnp.int32)
        labels = jnp.zeros(1, jnp.int32)
        return xt, t, labels, None

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
        """Compute the network's output in `dtype` and return it in float32.

        The condition is an array of class labels (b,), or another array that the network takes. A
        network with label dropout accepts -1, or no condition at all, for no class.
        Dropout is applied only with `dropout_keys`, one key per example. Raise ValueError unless t,
        condition and keys have one row per image.
        """
        inputs = self._inputs(xt, t, condition, dropout_keys, dtype)
        output: Any = self.module().apply({"params": params}, *inputs)
        return output.astype(jnp.float32)

    def queries_and_keys(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Num[Array, "b ..."] | None = None,
        *,
        kind: AttentionKind = "self_attention",
        dtype: Any = jnp.float32,
    ) -> dict[str, tuple[Array, Array]]:
        """The queries and keys of each attention layer, by its path (`collect_attention`)."""
        inputs = self._inputs(xt, t, condition, None, dtype)
        return collect_attention(self.module(), params, inputs, kind)

    def _inputs(self, xt, t, condition, dropout_keys, dtype) -> tuple:
        """The arguments of the module. Raise ValueError as `apply` does."""
        check_shape(xt.shape[:1], t=t, dropout_keys=dropout_keys)
        check_rows(xt.shape[0], condition=condition)
        if self.label_dropout:
            labels = self.unconditional(xt.shape[0]) if condition is None else condition
            assert labels is not None
            no_class_row = self.label_count - 1
            condition = jnp.where(labels == NO_CLASS, no_class_row, labels)
        return xt.astype(dtype), t, condition, dropout_keys

    def unconditional(self, n: int) -> Int[Array, " n"] | None:
        """The labels of n unconditional images; None for a network without label dropout."""
        return jnp.full(n, NO_CLASS, jnp.int32) if self.label_dropout else None
