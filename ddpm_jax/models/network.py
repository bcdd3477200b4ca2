"""Base classes of what has parameters: a frozen dataclass of settings with `init` and `shapes`."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Key

from ddpm_jax import draws
from ddpm_jax.errors import check, check_settings
from ddpm_jax.image_size import ImageSize, check_image_size, sides, simplest
from ddpm_jax.models.initializers import check_specs, draw_parameters, draw_split_parameters

Params = dict[str, Any]

COUNTS = (
    "channels num_classes vector_size condition_channels groups layers_per_level head_dim "
    "time_embedding_dim text_width text_layers text_heads"
).split()
"""Settings of networks that are at least 1, or None."""


class Network:
    """Base class of everything that has parameters: draws, describes and counts them.

    A subclass is a frozen dataclass of hyperparameters and adds `module` and `example_inputs`.
    """

    def __post_init__(self):
        """Make tuples of lists, because a network is hashed. Raise as `check_settings` does."""
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_settings(self)

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
        return nn.meta.unbox(self._param_specs)

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

    return check_specs(jax.eval_shape(init))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetwork(Network):
    """Base class of the networks of images. A subclass adds its hyperparameters."""

    image_size: ImageSize
    """Height and width of the images in pixels; one number for squares."""
    channels: int
    """1 for grey, 3 for RGB, any number for arrays."""

    def __post_init__(self):
        """Raise ValueError if a setting is out of range or `check` finds a conflict."""
        super().__post_init__()
        object.__setattr__(self, "image_size", simplest(self.image_size))
        for name in COUNTS:
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        widths: tuple[int, ...] = getattr(self, "widths", (1,))
        check(
            min(widths, default=0) >= 1,
            f"widths must name at least one level, of at least 1 channel, not {widths}.",
        )
        for name in ("dropout", "label_dropout", "condition_noise", "augmentation_probability"):
            rate = getattr(self, name, 0.0)
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), not {rate}.")
        check_image_size(self.image_size, self.halvings)
        self.check()

    @property
    def halvings(self) -> int:
        """How many times 2 must divide the height and width of images."""
        return 0

    def check(self) -> None:
        """Raise ValueError if the settings contradict each other. Subclasses override this."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (h, w, c) of one image."""
        return *sides(self.image_size), self.channels
