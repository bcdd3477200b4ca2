"""Networks: one architecture per file, a frozen dataclass of its settings with `init` and `apply`.

The layers, attention, initialisers and CPU kernels that the architectures share are here too.
Only this package uses Flax: outside, parameters are a nested dict of float32 arrays, and a network
is the two functions `init` and `apply`. Imports only `draws`, `errors` and `image_size`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.errors import check, check_floats, check_rows, check_shape
from ddpm_jax.image_size import check_image_size, sides
from ddpm_jax.models.attention import AttentionKind, collect_attention
from ddpm_jax.models.conditions import (
    NO_CLASS,
    NO_NUMBER,
    AugmentationKind,
    condition_image,
    condition_numbers,
    label_rows,
)
from ddpm_jax.models.network import ImageNetwork, Network, Params

__all__ = ["Condition", "ImageNetwork", "Model", "Network", "Params"]

Condition = Any
"""None, or a pytree of arrays with the batch in front."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(ImageNetwork):
    """Base class of the networks that denoise images. A subclass adds its hyperparameters."""

    FORMER_VALUES: ClassVar = {"hidden_flag": False}
    denoises_latents: ClassVar[bool] = False
    """Whether the images are latents, whose size and channels are those of the network."""

    num_classes: int | None = None
    """Number of class labels; None for a network without labels."""
    label_dropout: float = 0.0
    """Fraction of labels, or other conditions, dropped in training, in [0, 1). Guidance needs a
    value above 0."""
    vector_size: int | None = None
    """Length of a vector of numbers that images are conditioned on; None for no vector."""
    condition_channels: int | None = None
    """Channels of an image to concatenate to the input; None for no such image."""
    hidden_flag: bool = True
    """Tell a network with label dropout where that image is hidden, by a channel of 0 and 1.
    Without it, as in runs from before this setting, a hidden image is a grey one."""
    condition_noise: float = 0.0
    """Largest noise s on that image in training, in [0, 1): sqrt(1 - s^2) c + s eps, with s uniform
    up to this. The network is told s."""
    augmentation: tuple[AugmentationKind, ...] = ()
    """EDM's transformations of images in training, of which the network is told. blitting: flips,
    quarter turns, shifts. geometry: scaling, rotation, stretching, translation. colour:
    brightness, contrast, luma flips, hue, saturation."""
    augmentation_probability: float = 0.12
    """Probability of each of these transformations, in [0, 1)."""
    learned_variance: bool = False
    """Double the output channels; the second half sets the log variance of the reverse step."""

    def __post_init__(self):
        super().__post_init__()
        if self.condition_channels is None or not self.label_dropout:
            # The flag has no effect, so networks with and without it are equal.
            object.__setattr__(self, "hidden_flag", True)
        if self.label_dropout and not self.takes_condition:
            raise ValueError(
                "label_dropout drops labels, but this network has none: set num_classes too."
            )
        check(
            self.condition_channels is not None or not self.condition_noise,
            "condition_noise is for an image to concatenate: set condition_channels too.",
        )
        check(
            self.condition_channels is None or not self.augmentation,
            "Augmentation would change images and not the images that they are conditioned on: "
            "leave augmentation or condition_channels out.",
        )

    @property
    def condition_parts(self) -> tuple[str, ...]:
        """The names of the arrays of a batch that are the condition."""
        taken = {
            "label": self.num_classes,
            "vector": self.vector_size,
            "condition_image": self.condition_channels,
        }
        return tuple(name for name, size in taken.items() if size is not None)

    @property
    def flags_hidden_image(self) -> bool:
        """Whether a channel tells the network where its condition image is hidden."""
        may_hide = self.condition_channels is not None and self.label_dropout > 0
        return may_hide and self.hidden_flag

    @property
    def hidden_pixel(self) -> float:
        """The number of which a hidden condition image consists."""
        return NO_NUMBER if self.flags_hidden_image else 0.0

    @property
    def condition_settings(self) -> dict[str, Any]:
        """The settings of the condition, by name."""
        names = "num_classes vector_size condition_channels condition_noise augmentation".split()
        return {name: getattr(self, name) for name in names}

    @property
    def takes_condition(self) -> bool:
        """Whether the network has labels, or another condition."""
        return bool(self.condition_parts)

    @property
    def takes_labels(self) -> bool:
        """Whether images may have labels, or token ids in their place."""
        return "label" in self.condition_parts

    @property
    def _takes_dict(self) -> bool:
        """Whether the condition is a dict of its parts, because it is not the label alone."""
        return bool({*self.condition_parts, *self.augmentation} - {"label"})

    def condition_of(self, batch: Mapping[str, Any]) -> Condition:
        """The condition among the arrays of a batch: its labels, or a dict of `condition_parts`.

        With `condition_noise`, the dict also holds its level, which is 0 (`add_condition_noise`).
        Raise ValueError if the batch lacks a part.
        """
        self._check_parts(batch)
        if not self._takes_dict:
            return batch.get("label") if self.takes_labels else None
        parts = {name: batch[name] for name in self.condition_parts}
        if self.condition_noise:
            parts["condition_noise"] = jnp.zeros(len(parts["condition_image"]), jnp.float32)
        return parts

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
        """The Linen module, called with (xt, t, labels, dropout_keys[, numbers])."""
        raise NotImplementedError

    def example_inputs(self) -> tuple:
        xt = jnp.zeros((1, *self.image_shape), jnp.float32)
        t = jnp.zeros(1, jnp.int32)
        shapes = {
            "label": (1,),
            "vector": (1, self.vector_size),
            "condition_image": (1, *sides(self.image_size), self.condition_channels),
        }
        parts = {name: jnp.zeros(shapes[name], jnp.float32) for name in self.condition_parts}
        condition = self.condition_of(parts | {"label": jnp.zeros(1, jnp.int32)})
        return self._inputs(xt, t, condition, None, xt.dtype)

    def apply(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Condition = None,
        *,
        dropout_keys: Key[Array, " b"] | None = None,
        dtype: Any = jnp.float32,
    ) -> Float[Array, "b h w out"]:
        """Compute the network's output in `dtype` and return it in float32.

        The condition is an array of class labels (b,) or, for a network that takes more than
        labels, a dict of `condition_parts` (`condition_of`). A network with label dropout accepts
        `unconditional(n)`, or no condition at all, for none.
        Dropout is applied only with `dropout_keys`, one key per example. Raise ValueError unless
        the images are floats, t, condition and keys have one row per image, the condition has all
        its parts and no others, the images have `channels`, and their sides can be halved
        `halvings` times.
        """
        inputs = self._inputs(xt, t, condition, dropout_keys, dtype)
        output: Any = self.module().apply({"params": params}, *inputs)
        return output.astype(jnp.float32)

    def queries_and_keys(
        self,
        params: Params,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        condition: Condition = None,
        *,
        kind: AttentionKind = "self_attention",
        dtype: Any = jnp.float32,
    ) -> dict[str, tuple[Array, Array]]:
        """The queries and keys of each attention layer, by its path (`collect_attention`)."""
        inputs = self._inputs(xt, t, condition, None, dtype)
        return collect_attention(self.module(), params, inputs, kind)

    def _inputs(self, xt, t, condition, dropout_keys, dtype) -> tuple:
        """The arguments of the module. Raise ValueError as `apply` does."""
        check_floats(xt=xt)
        check_shape(xt.shape[:1], t=t, dropout_keys=dropout_keys)
        check_rows(xt.shape[0], condition=condition)
        check(
            xt.shape[-1] == self.channels,
            f"The network takes images of {self.channels} channels, not {xt.shape[-1]}.",
        )
        # In `jax.export` a side may be symbolic.
        if all(isinstance(side, int) for side in xt.shape[1:3]):
            check_image_size(xt.shape[1:3], self.halvings)
        parts = self._parts(condition)
        labels = label_rows(self, parts.get("label"), xt.shape[0])
        numbers = condition_numbers(self, parts, xt.shape[0])
        if self.condition_channels is not None:
            xt = jnp.concatenate([xt, condition_image(self, parts, xt.shape)], -1)
        inputs = xt.astype(dtype), t, labels, dropout_keys
        return inputs if numbers is None else (*inputs, numbers)

    def _parts(self, condition: Condition) -> Mapping[str, Any]:
        """The parts of a condition by name. Raise ValueError for one of another form."""
        if not self._takes_dict or condition is None:
            check(
                condition is None or self.takes_labels,
                "This network takes no condition: leave it out, or set num_classes.",
            )
            return {"label": condition}
        known = ("label", "vector", "condition_image", "condition_noise", "augmentation")
        check(
            isinstance(condition, Mapping) and not set(condition) - set(known),
            f"This network takes a dict of {', '.join(self.condition_parts)}: make one by "
            "`condition_of`.",
        )
        self._check_parts(condition)
        return condition

    def _check_parts(self, given: Mapping[str, Any]) -> None:
        for name in self.condition_parts:
            check(name in given, f"This network is conditioned on {name}: give it in each batch.")

    def unconditional(self, n: int) -> Condition:
        """The condition of n unconditional images; None for a network without label dropout.

        Its label is NO_CLASS, its vector NO_NUMBER, its image `hidden_pixel`.
        """
        if not self.label_dropout:
            return None
        arrays = {"label": jnp.full(n, NO_CLASS, jnp.int32)}
        if self.vector_size is not None:
            arrays["vector"] = jnp.full((n, self.vector_size), NO_NUMBER, jnp.float32)
        if self.condition_channels is not None:
            shape = (n, *sides(self.image_size), self.condition_channels)
            arrays["condition_image"] = jnp.full(shape, self.hidden_pixel, jnp.float32)
        return self.condition_of(arrays)
