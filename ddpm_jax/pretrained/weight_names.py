"""Convert our parameters to and from the tensor names and layouts of diffusers.

The networks of Stable Diffusion have the names of diffusers and transformers themselves. The table
is for `UNet`, diffusers' UNet2DModel.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models import Network, Params
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.torch_pickle import LazyTensor

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "time_frequencies": "weight",
    "bias": "bias",
}
LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""{name of an attention layer before diffusers 0.15: its name since}."""

CLIP_PREFIX = "text_model."
"""Prefix of the text encoder's names, which some files since transformers 5.6 lack."""

# {pattern of our module paths: module in diffusers}. {i} is the number of the down or up block:
# diffusers counts each kind in the order in which the blocks run.
MODULES = {
    r"conv_(in|out)": r"conv_\1",
    r"norm_out": "conv_norm_out",
    r"time_linear_(\d)": r"time_embedding.linear_\1",
    r"class_linear_(\d)": r"class_embedding.linear_\1",
    r"class_embedding": "class_embedding",
    r"time_(table|frequencies)": "time_proj",
    r"middle/(resnet|attention)_(\d)": r"mid_block.\1s.\2",
    r"(down|up)_\d+/(resnet|attention)_(\d+)": r"\1_blocks.{i}.\2s.\3",
    r"(down|up)_picture_\d+": r"\1_blocks.{i}.skip_conv",
    r"up_picture_norm_\d+": "up_blocks.{i}.skip_norm",
}
RESAMPLERS = {
    "conv": "{direction}_blocks.{i}.{direction}samplers.0.conv",
    "resnet": "{direction}_blocks.{i}.{direction}samplers.0",
    "skip": "{direction}_blocks.{i}.resnet_{direction}",
}


def state_dict_name(net: Network, path: str) -> str:
    """The diffusers name of our parameter, such as down_blocks.0.resnets.1.conv1.weight."""
    if isinstance(net, UNet):
        return _unet_name(net, path)
    *modules, leaf = path.split("/")
    module = ".".join(modules)
    if modules[-1] == "to_out":
        module += ".0"
    return f"{module}.{LEAVES[leaf]}"


def _unet_name(net: UNet, path: str) -> str:
    *modules, leaf = path.split("/")
    level = re.search(r"\d+", modules[0]) if modules else None
    i = int(level[0]) if level else 0
    # Our up levels are numbered from the finest, those of diffusers from the coarsest.
    if path.startswith("up"):
        i = len(net.widths) - 1 - i
    module, rest = _module(net, "/".join(modules) or leaf)
    name = module.format(i=i)
    for part in rest.split("/"):
        if part:
            name += ".to_out.0" if part == "to_out" else f".{part}"
    return f"{name}.{LEAVES[leaf]}"


def _module(net: UNet, path: str) -> tuple[str, str]:
    """The module in diffusers, with {i} for its level, and the rest of our path."""
    if match := re.match(r"(down|up)sample_(\d+)/?", path):
        direction = match[1]
        levels = net.down_levels if direction == "down" else net.up_levels
        _, _, kind = levels[int(match[2])]
        return RESAMPLERS[kind].replace("{direction}", direction), path[match.end() :]
    for pattern, module in MODULES.items():
        if match := re.match(f"(?:{pattern})(?:/|$)", path):
            return re.sub(pattern, module, match[0].rstrip("/")), path[match.end() :]
    raise AssertionError(f"no name in diffusers for {path}")


def _paths(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def to_state_dict(net: Network, params: Params) -> dict[str, np.ndarray]:
    """Convert parameters to {diffusers name: array in PyTorch's layout}.

    Raise ValueError if the parameters do not belong to the network.
    """
    expected = {path: leaf.shape for path, leaf in _paths(net.shapes())}
    given = {path: leaf.shape for path, leaf in _paths(params)}
    _check_shapes(expected, given, "The parameters do not match the network")
    tensors = {
        state_dict_name(net, path): to_torch(path, np.asarray(leaf))
        for path, leaf in _paths(params)
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}


def from_state_dict(net: Network, tensors: Mapping[str, LazyTensor]) -> Params:
    """Convert the tensors of a diffusers state dict to our float32 parameters.

    Raise ValueError unless the tensors are exactly those of the network, in its shapes. No tensor
    is read before all names and shapes are checked.
    """
    renamed = {_current_name(net, name): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise ValueError("The weights hold a tensor under both its old and its new name.")
    shapes = net.shapes()
    expected = {
        state_dict_name(net, path): shape_in_torch(path, leaf.shape)
        for path, leaf in _paths(shapes)
    }
    given = {name: tensor.shape for name, tensor in renamed.items()}
    _check_shapes(
        expected, given, "The weights do not match the network that config.json describes"
    )

    def read_leaf(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(from_torch(path, renamed[state_dict_name(net, path)].read()))

    return jax.tree_util.tree_map_with_path(read_leaf, shapes)


def _check_shapes(expected: Mapping[str, tuple], given: Mapping[str, tuple], problem: str) -> None:
    """Raise ValueError, with a message that begins with `problem`, if names or shapes differ."""
    differences = {
        "missing": sorted(set(expected) - set(given)),
        "unexpected": sorted(set(given) - set(expected)),
        "of another shape": [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in expected.items()
            if given.get(name, shape) != shape
        ],
    }
    listed = [
        f"{len(names)} {kind} ({first_names(names)})"
        for kind, names in differences.items()
        if names
    ]
    if listed:
        raise ValueError(f"{problem}: {', '.join(listed)}.")


def first_names(names: list[str], maximum: int = 2) -> str:
    """The first names of a list, and the number of the others."""
    text = ", ".join(name[:120] for name in names[:maximum])
    if len(names) > maximum:
        text += f" and {len(names) - maximum} more"
    return text


def _current_name(net: Network, name: str) -> str:
    """Replace a legacy name of an attention layer, and the short names of transformers 5.6."""
    if isinstance(net, ClipText) and not name.startswith(CLIP_PREFIX):
        return CLIP_PREFIX + name
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts and parts[-2] in LEGACY:
        parts[-2] = LEGACY[parts[-2]]
    return ".".join(parts)


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """Our array in PyTorch's layout. Only kernels differ."""
    if not path.endswith("kernel"):
        return array
    # Convolutions: (h, w, in, out) -> (out, in, h, w). Dense layers: (in, out) -> (out, in).
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch(path: str, array: np.ndarray) -> np.ndarray:
    """An array of PyTorch's layout in ours."""
    if not path.endswith("kernel"):
        return array
    # Convolutions: (out, in, h, w) -> (h, w, in, out). Dense layers: (out, in) -> (in, out).
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def shape_in_torch(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of our array in PyTorch's layout."""
    if not path.endswith("kernel"):
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
