"""S1's ConvBlock U-Net: 33,260,417 parameters with 1 channel and 33,261,827 with 3, attention off."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.models import Model
from ddpm_jax.models.attention import SelfAttention
from ddpm_jax.models.initializers import param_spec, torch_uniform
from ddpm_jax.models.layers import (
    GroupNorm,
    check_image_size,
    check_unconditional,
    conv,
    dense,
    dropout,
    max_pool,
    module_keys,
    sinusoidal_embedding,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvUNet(Model):
    """Blocks of two convolutions with the norm after each, max pooling, transposed convolutions, PyTorch's init."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels of each level, the finest first; each further level halves the picture."""
    time_embedding_dim: int = 256
    attention_sizes: tuple[int, ...] = ()
    """Picture sizes, such as 8 16, whose blocks are followed by self-attention."""
    head_dim: int | None = 64
    """Channels an attention head; None for a single head."""
    groups: int = 32
    dropout: float = 0.0
    """Share of activations dropped before the second convolution of each block while training, in [0, 1)."""

    def check(self) -> None:
        check_unconditional(self.num_classes, "ConvUNet")
        check_image_size(self.image_size, len(self.widths) - 1)
        sizes = [self.image_size >> i for i in range(len(self.widths))]
        if unknown := set(self.attention_sizes) - set(sizes):
            raise ValueError(
                f"no level has size {min(unknown)} for attention; the sizes are {sizes}"
            )

    def module(self) -> nn.Module:
        return ConvUNetModule(self, name="conv_unet")


class ConvBlock(nn.Module):
    """conv, norm, SiLU, plus the time embedding, conv, norm, SiLU, plus the input."""

    net: ConvUNet
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b d"], keys
    ) -> Float[Array, "b h w c2"]:
        net = self.net
        h = nn.silu(
            GroupNorm(net.groups, name="norm1")(conv(x, self.width, 3, "conv1", init="torch"))
        )
        h = h + nn.silu(dense(emb, self.width, "time_emb_proj", init="torch"))[:, None, None]
        h = dropout(h, net.dropout, module_keys(self, keys))
        h = nn.silu(
            GroupNorm(net.groups, name="norm2")(conv(h, self.width, 3, "conv2", init="torch"))
        )
        h = h + (
            x
            if x.shape[-1] == self.width
            else conv(x, self.width, 1, "conv_shortcut", init="torch")
        )
        if h.shape[1] in net.attention_sizes:
            h = SelfAttention(net.head_dim, net.groups, init_scheme="torch", name="attention")(h)
        return h


class ConvUNetModule(nn.Module):
    """The whole net; see `ConvUNet` for the hyperparameters."""

    net: ConvUNet

    @nn.compact
    def __call__(
        self,
        xt: Float[Array, "b h w c"],
        t: Num[Array, " b"],
        labels,
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w out"]:
        net, last = self.net, len(self.net.widths) - 1
        waves = sinusoidal_embedding(
            t, net.time_embedding_dim, layout="interleaved", freq_shift=0.0
        ).astype(xt.dtype)
        emb = nn.relu(dense(waves, net.time_embedding_dim, "time_linear", init="torch"))
        h, skips = xt, []
        for i, width in enumerate(net.widths):
            h = ConvBlock(net, width, name=f"down_{i}")(h, emb, keys)
            if i < last:
                skips.append(h)
                h = max_pool(h)
        for i in reversed(range(last)):
            h = TransposedConv(net.widths[i], name=f"upsample_{i}")(h)
            h = ConvBlock(net, net.widths[i], name=f"up_{i}")(
                jnp.concatenate([skips[i], h], -1), emb, keys
            )
        return conv(h, net.out_channels, 1, "conv_out", init="torch")


class TransposedConv(nn.Module):
    """A transposed 2x2 convolution of stride 2: its windows do not overlap, so it is one product a pixel."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c2"]:
        b, h, w, c = x.shape
        init = param_spec(
            torch_uniform(4 * self.features)
        )  # PyTorch counts the output channels here
        kernel = self.param("kernel", init, (c, 2, 2, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        blocks = jnp.einsum("bhwc,cijf->bhiwjf", x, kernel.astype(x.dtype))
        return (
            blocks.reshape(b, 2 * h, 2 * w, self.features) + bias.astype(x.dtype)[None, None, None]
        )
