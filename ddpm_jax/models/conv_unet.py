"""The ConvBlock U-Net: convolutions followed by their norm, max pooling, PyTorch's initialisation.

It has 33,260,417 parameters with 1 channel and 33,261,827 with 3, without attention.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.models import Model
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.initializers import parameter, torch_uniform
from ddpm_jax.models.layers import (
    check_unconditional,
    conv,
    dense,
    dropout,
    max_pool,
    merge_blocks,
    module_keys,
    sinusoidal_embedding,
)
from ddpm_jax.models.norms import GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvUNet(Model):
    """A U-Net of two-convolution blocks with max pooling and transposed convolutions."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels of each level, finest first. Each further level halves the image size."""
    time_embedding_dim: int = 256
    """Width of the time embedding."""
    attention_sizes: tuple[int, ...] = ()
    """Image heights, such as 8 16, of the levels whose blocks end in self-attention."""
    head_dim: int | None = 64
    """Channels per attention head; None for a single head."""
    groups: int = 32
    """Groups of the group norms."""
    dropout: float = 0.0
    """Dropout rate before the second convolution of each block, in [0, 1)."""

    @property
    def halvings(self) -> int:
        return len(self.widths) - 1

    def check(self) -> None:
        check_unconditional("ConvUNet", **self.condition_settings)
        sizes = [self.image_shape[0] >> i for i in range(len(self.widths))]
        unknown = set(self.attention_sizes) - set(sizes)
        if unknown:
            raise ValueError(
                f"No level has size {min(unknown)} for attention: the sizes are {sizes}."
            )

    def module(self) -> nn.Module:
        return ConvUNetModule(self, name="conv_unet")


class ConvBlock(nn.Module):
    """Residual block: conv, norm, SiLU, add the time embedding, conv, norm, SiLU, add the input.

    Self-attention follows if the image height is one of `attention_sizes`.
    """

    net: ConvUNet
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"], keys
    ) -> Float[Array, "b h w c2"]:
        net = self.net
        h = conv(x, self.width, 3, "conv1", init="torch")  # (b, h, w, c) -> (b, h, w, c2)
        h = nn.silu(GroupNorm(net.groups, name="norm1")(h))
        time_shift = nn.silu(dense(emb, self.width, "time_emb_proj", init="torch"))  # (b, c2)
        h = h + time_shift[:, None, None]
        h = dropout(h, net.dropout, module_keys(self, keys))
        h = conv(h, self.width, 3, "conv2", init="torch")
        h = nn.silu(GroupNorm(net.groups, name="norm2")(h))
        if x.shape[-1] != self.width:
            x = conv(x, self.width, 1, "conv_shortcut", init="torch")  # (b, h, w, c2)
        h = h + x
        if h.shape[1] in net.attention_sizes:
            h = SelfAttention(net.head_dim, net.groups, init_scheme="torch", name="attention")(h)
        return h


class ConvUNetModule(nn.Module):
    """The Linen module of `ConvUNet`."""

    net: ConvUNet

    @nn.compact
    def __call__(
        self,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w out"]:
        net = self.net
        last = len(net.widths) - 1
        waves = sinusoidal_embedding(
            t, net.time_embedding_dim, layout="interleaved", freq_shift=0.0
        ).astype(xt.dtype)
        emb = nn.relu(dense(waves, net.time_embedding_dim, "time_linear", init="torch"))  # (b, d)
        h = xt
        skips = []
        for i, width in enumerate(net.widths):
            # (b, h / 2**i, w / 2**i, width)
            h = ConvBlock(net, width, name=f"down_{i}")(h, emb, keys)
            if i < last:
                skips.append(h)
                h = max_pool(h)  # (b, h / 2**(i + 1), w / 2**(i + 1), width)
        for i in reversed(range(last)):
            width = net.widths[i]
            h = TransposedConv(width, name=f"upsample_{i}")(h)  # (b, h / 2**i, w / 2**i, width)
            h = jnp.concatenate([skips[i], h], -1)  # (b, h / 2**i, w / 2**i, 2 * width)
            h = ConvBlock(net, width, name=f"up_{i}")(h, emb, keys)
        return conv(h, net.out_channels, 1, "conv_out", init="torch")


class TransposedConv(nn.Module):
    """Transposed 2x2 convolution of stride 2.

    Its windows do not overlap, so it is one matrix product per pixel.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c2"]:
        c = x.shape[-1]
        # PyTorch takes the fan-in of a transposed convolution from its output channels.
        init = torch_uniform(4 * self.features)
        kernel = parameter(self, "kernel", init, (c, 2, 2, self.features))
        bias = parameter(self, "bias", init, (self.features,))
        blocks = jnp.einsum("bhwc,cijf->bhiwjf", x, kernel.astype(x.dtype))  # (b, h, 2, w, 2, f)
        return merge_blocks(blocks) + bias.astype(x.dtype)[None, None, None]
