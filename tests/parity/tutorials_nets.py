"""The networks of two tutorials, written in PyTorch from their descriptions."""

import torch
from torch import nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of t 10000^(-i/half), interleaved."""

    def __init__(self, size):
        super().__init__()
        exponents = -torch.arange(size // 2, dtype=torch.float64) / (size // 2)
        self.register_buffer("frequencies", (10000.0**exponents).float())

    def forward(self, t):
        angles = t[:, None] * self.frequencies[None]  # (b, size / 2)
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (b, size)


class ConvBlock(nn.Module):
    """conv, norm, SiLU, + SiLU(linear(time)), conv, norm, SiLU, + shortcut."""

    def __init__(self, channels_in, channels, time_size):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(32, channels)
        self.time = nn.Linear(time_size, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, channels)
        same = channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x, time):
        silu = nn.functional.silu
        h = silu(self.norm1(self.conv1(x))) + silu(self.time(time))[:, :, None, None]
        return silu(self.norm2(self.conv2(h))) + self.shortcut(x)


class ConvBlockUNet(nn.Module):
    """Five levels of ConvBlocks, max pooling down, transposed convolutions up."""

    def __init__(self, channels=1, widths=(64, 128, 256, 512, 1024), time_size=256):
        super().__init__()
        self.time = nn.Sequential(
            TimeEmbedding(time_size), nn.Linear(time_size, time_size), nn.ReLU()
        )
        ins = (channels, *widths[:-1])
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))  # (1024, 512), ...
        self.down = nn.ModuleList(
            ConvBlock(i, o, time_size) for i, o in zip(ins, widths, strict=True)
        )
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
        self.up = nn.ModuleList(ConvBlock(i, o, time_size) for i, o in pairs)
        self.output = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x, t):
        time = self.time(t)
        skips = []
        for i, block in enumerate(self.down):
            x = block(x, time)
            if i < len(self.down) - 1:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([skips.pop(), enlarge(x)], dim=1), time)
        return self.output(x)


class TorchBasicUNet(nn.Module):
    """Six 5x5 convolutions with SiLU, max pooling, nearest upsampling, additive skips."""

    def __init__(self):
        super().__init__()
        pairs = ((1, 32), (32, 64), (64, 64), (64, 64), (64, 32), (32, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 5, padding=2) for i, o in pairs)

    def forward(self, x, t):
        skips = []
        for i, convolution in enumerate(self.convolutions):
            if i > 3:
                x = nn.functional.interpolate(x, scale_factor=2) + skips.pop()
            x = nn.functional.silu(convolution(x))
            if i < 2:
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        return x
