"""The networks of features in PyTorch: the FID network, and EfficientNet-Lite0 of its package.

The FID network is written here from the descriptions of Inception v3 (Szegedy et al. 2016) and of
pytorch-fid, with the names of its layers.
"""

import functools

import shared  # noqa: F401
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

BUFFER = "num_batches_tracked"


class Conv(nn.Module):
    """A convolution without bias, a batch norm and a ReLU. The padding keeps the size."""

    def __init__(self, inputs, outputs, height, width, stride=1, pad=True):
        super().__init__()
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of convolutions from one input, concatenated.

    A chain lists (name, outputs, height, width). A pair of lists at its end is a fork. `pool` is
    the function before the last chain, and `stride` that of the last convolution of a chain.
    """

    def __init__(self, inputs, chains, pool=None, stride=1):
        super().__init__()
        self.chains = chains
        self.pool = pool
        self.outputs = 0
        for chain in chains:
            channels = inputs
            for depth, (name, outputs, height, width) in enumerate(chain["convs"]):
                last = depth == len(chain["convs"]) - 1 and stride == 2
                self.add_module(
                    name, Conv(channels, outputs, height, width, 1 + last, pad=not last)
                )
                channels = outputs
            for name, outputs, height, width in chain.get("fork", ()):
                self.add_module(name, Conv(channels, outputs, height, width))
            forked = [outputs for _, outputs, _, _ in chain.get("fork", ())]
            self.outputs += sum(forked) or channels
        self.kept = stride == 2
        self.outputs += inputs * self.kept

    def forward(self, x):
        results = []
        for chain in self.chains:
            y = self.pool(x) if chain.get("pooled") else x
            for name, *_ in chain["convs"]:
                y = self.get_submodule(name)(y)
            fork = [self.get_submodule(name)(y) for name, *_ in chain.get("fork", ())]
            results += fork or [y]
        if self.kept:
            results.append(F.max_pool2d(x, 3, 2))
        return torch.cat(results, 1)


mean = functools.partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum = functools.partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


def chain(*convs, **options):
    return {"convs": convs, **options}


def block_a(inputs, pooled, n):
    return Block(
        inputs,
        [
            chain(("branch1x1", n(64), 1, 1)),
            chain(("branch5x5_1", n(48), 1, 1), ("branch5x5_2", n(64), 5, 5)),
            chain(
                ("branch3x3dbl_1", n(64), 1, 1),
                ("branch3x3dbl_2", n(96), 3, 3),
                ("branch3x3dbl_3", n(96), 3, 3),
            ),
            chain(("branch_pool", n(pooled), 1, 1), pooled=True),
        ],
        mean,
    )


def block_b(inputs, n):
    return Block(
        inputs,
        [
            chain(("branch3x3", n(384), 3, 3)),
            chain(
                ("branch3x3dbl_1", n(64), 1, 1),
                ("branch3x3dbl_2", n(96), 3, 3),
                ("branch3x3dbl_3", n(96), 3, 3),
            ),
        ],
        stride=2,
    )


def block_c(inputs, width, n):
    c = n(width)
    return Block(
        inputs,
        [
            chain(("branch1x1", n(192), 1, 1)),
            chain(
                ("branch7x7_1", c, 1, 1), ("branch7x7_2", c, 1, 7), ("branch7x7_3", n(192), 7, 1)
            ),
            chain(
                ("branch7x7dbl_1", c, 1, 1),
                ("branch7x7dbl_2", c, 7, 1),
                ("branch7x7dbl_3", c, 1, 7),
                ("branch7x7dbl_4", c, 7, 1),
                ("branch7x7dbl_5", n(192), 1, 7),
            ),
            chain(("branch_pool", n(192), 1, 1), pooled=True),
        ],
        mean,
    )


def block_d(inputs, n):
    return Block(
        inputs,
        [
            chain(("branch3x3_1", n(192), 1, 1), ("branch3x3_2", n(320), 3, 3)),
            chain(
                ("branch7x7x3_1", n(192), 1, 1),
                ("branch7x7x3_2", n(192), 1, 7),
                ("branch7x7x3_3", n(192), 7, 1),
                ("branch7x7x3_4", n(192), 3, 3),
            ),
        ],
        stride=2,
    )


def block_e(inputs, pool, n):
    def fork(name):
        return ((f"{name}a", n(384), 1, 3), (f"{name}b", n(384), 3, 1))

    return Block(
        inputs,
        [
            chain(("branch1x1", n(320), 1, 1)),
            chain(("branch3x3_1", n(384), 1, 1), fork=fork("branch3x3_2")),
            chain(
                ("branch3x3dbl_1", n(448), 1, 1),
                ("branch3x3dbl_2", n(384), 3, 3),
                fork=fork("branch3x3dbl_3"),
            ),
            chain(("branch_pool", n(192), 1, 1), pooled=True),
        ],
        pool,
    )


class FidInception(nn.Module):
    """The FID network, its widths divided by a number. Takes pixels (b, 3, h, w) in [0, 1]."""

    def __init__(self, divisor=1):
        super().__init__()

        def n(channels):
            return max(channels // divisor, 1)

        self.Conv2d_1a_3x3 = Conv(3, n(32), 3, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(n(32), n(32), 3, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(n(32), n(64), 3, 3)
        self.Conv2d_3b_1x1 = Conv(n(64), n(80), 1, 1)
        self.Conv2d_4a_3x3 = Conv(n(80), n(192), 3, 3, pad=False)
        makers = {
            "Mixed_5b": lambda c: block_a(c, 32, n),
            "Mixed_5c": lambda c: block_a(c, 64, n),
            "Mixed_5d": lambda c: block_a(c, 64, n),
            "Mixed_6a": lambda c: block_b(c, n),
            "Mixed_6b": lambda c: block_c(c, 128, n),
            "Mixed_6c": lambda c: block_c(c, 160, n),
            "Mixed_6d": lambda c: block_c(c, 160, n),
            "Mixed_6e": lambda c: block_c(c, 192, n),
            "Mixed_7a": lambda c: block_d(c, n),
            "Mixed_7b": lambda c: block_e(c, mean, n),
            "Mixed_7c": lambda c: block_e(c, maximum, n),
        }
        channels = n(192)
        for name, make in makers.items():
            block = make(channels)
            self.add_module(name, block)
            channels = block.outputs
        self.blocks = tuple(makers)

    def forward(self, pixels):
        x = F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_1a_3x3(2 * x - 1)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def lite0(width=1.0):
    """EfficientNet-Lite0 of the package, at another width coefficient."""
    return EfficientNet.from_name("efficientnet-lite0", width_coefficient=width, num_classes=1000)


def lite0_features(net, pixels):
    """The pooled features of levels (b, 3, h, w) in [0, 255]."""
    x = F.interpolate(pixels, size=(224, 224), mode="bicubic", align_corners=False)
    return net.extract_features((x - 127) / 128).mean((2, 3))


def shapes(net):
    """The shapes of the tensors by name, without the counters of the batch norms."""
    return {k: list(v.shape) for k, v in net.state_dict().items() if not k.endswith(BUFFER)}


@torch.no_grad()
def set_weights(net, arrays):
    """Give a network these arrays, and set it up for inference."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing = net.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith(BUFFER) for name in missing.missing_keys)
    return net.eval()
