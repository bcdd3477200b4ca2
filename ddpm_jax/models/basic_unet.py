"""S4's BasicUNet: six 5x5 convolutions and additive skips, 309,057 parameters with 1 channel; it ignores t."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from ddpm_jax.models import Model
from ddpm_jax.models.layers import (
    check_image_size,
    check_unconditional,
    conv,
    max_pool,
    upsample_nearest,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BasicUNet(Model):
    """The smallest U-Net that works; its last SiLU makes it fit images in [0, 1], not in [-1, 1]."""

    def check(self) -> None:
        check_unconditional(self.num_classes, "BasicUNet")
        if self.learned_variance:
            raise ValueError("BasicUNet has no output for a learned variance: use the UNet")
        check_image_size(self.image_size, 2)

    def module(self) -> nn.Module:
        return BasicUNetModule(self.channels, name="basic_unet")


class BasicUNetModule(nn.Module):
    """The whole net."""

    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], t, labels, keys) -> Float[Array, "b h w c"]:
        skips = []
        for i, width in enumerate((32, 64, 64)):
            x = nn.silu(conv(x, width, 5, f"down_{i}", init="torch"))
            if i < 2:
                skips.append(x)
                x = max_pool(x)
        for i, width in enumerate((64, 32, self.channels)):
            if i:
                x = upsample_nearest(x) + skips.pop()
            x = nn.silu(conv(x, width, 5, f"up_{i}", init="torch"))
        return x
