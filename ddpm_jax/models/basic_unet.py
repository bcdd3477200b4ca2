"""BasicUNet, a toy network of six 5x5 convolutions with additive skips, which ignores t.

It has 309,057 parameters with 1 channel. `examples/corruption.py` trains it.
"""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from ddpm_jax.models import Model
from ddpm_jax.models.layers import (
    check_unconditional,
    conv,
    max_pool,
    upsample_nearest,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BasicUNet(Model):
    """A minimal U-Net without time or labels.

    It ends in a SiLU, which is never below -0.28, so its images must be in [0, 1], not in [-1, 1].
    """

    @property
    def halvings(self) -> int:
        return 2

    def check(self) -> None:
        check_unconditional("BasicUNet", **self.condition_settings)
        if self.learned_variance:
            raise ValueError("BasicUNet has no output for a learned variance: use the UNet.")

    def module(self) -> nn.Module:
        return BasicUNetModule(self.channels, name="basic_unet")


class BasicUNetModule(nn.Module):
    """The Linen module of `BasicUNet`."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], t, labels, keys) -> Float[Array, "b h w c"]:
        skips = []
        for i, width in enumerate((32, 64, 64)):
            # (b, h / 2**i, w / 2**i, width)
            x = nn.silu(conv(x, width, 5, f"down_{i}", init="torch"))
            if i < 2:
                skips.append(x)
                x = max_pool(x)  # (b, h / 2**(i + 1), w / 2**(i + 1), width)
        for i, width in enumerate((64, 32, self.channels)):
            if i:
                x = upsample_nearest(x) + skips.pop()  # (b, h / 2**(2 - i), w / 2**(2 - i), ...)
            x = nn.silu(conv(x, width, 5, f"up_{i}", init="torch"))
        return x
