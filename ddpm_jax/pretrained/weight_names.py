"""The names and layouts of a UNet2DModel's tensors, and our parameters, each from the other."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import check
from ddpm_jax.models import Params
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
"""Names of the parts of attention before diffusers 0.15."""

# Our module, as a pattern, and theirs; {i} is the number of a level among its kind in diffusers.
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
    "conv": "{way}_blocks.{i}.{way}samplers.0.conv",
    "resnet": "{way}_blocks.{i}.{way}samplers.0",
    "skip": "{way}_blocks.{i}.resnet_{way}",
}


def state_dict_name(net: UNet, path: str) -> str:
    """The name in diffusers of our parameter, such as down_blocks.0.resnets.1.conv1.weight."""
    *modules, leaf = path.split("/")
    level = re.search(r"\d+", modules[0]) if modules else None
    i = int(level[0]) if level else 0
    i = len(net.widths) - 1 - i if path.startswith("up") else i
    start, rest = _module(net, "/".join(modules) or leaf)
    inner = "".join(
        f".{'to_out.0' if part == 'to_out' else part}" for part in rest.split("/") if part
    )
    return f"{start.format(i=i)}{inner}.{LEAVES[leaf]}"


def _module(net: UNet, path: str) -> tuple[str, str]:
    """Where the module begins in diffusers, with {i} for its level, and what of its path remains."""
    if found := re.match(r"(down|up)sample_(\d+)/?", path):
        way, level = found[1], int(found[2])
        kind = (net.down_levels if way == "down" else net.up_levels)[level][2]
        return RESAMPLERS[kind].replace("{way}", way), path[found.end() :]
    for pattern, theirs in MODULES.items():
        if found := re.match(f"(?:{pattern})(?:/|$)", path):
            return re.sub(pattern, theirs, found[0].rstrip("/")), path[found.end() :]
    raise AssertionError(f"no name in diffusers for {path}")


def _paths(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def to_state_dict(net: UNet, params: Params) -> dict[str, np.ndarray]:
    """{name in diffusers: float32 array in PyTorch's layout}; raises ValueError for the parameters of another net."""
    wanted, given = (
        {path: leaf.shape for path, leaf in _paths(tree)} for tree in (net.shapes(), params)
    )
    _check_same(wanted, given, "the parameters are not those of the net")
    tensors = {
        state_dict_name(net, path): _to_torch(path, np.asarray(leaf))
        for path, leaf in _paths(params)
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}


def from_state_dict(net: UNet, tensors: Mapping[str, LazyTensor]) -> Params:
    """Our parameters, float32, from those of diffusers; raises ValueError unless each is there once, in its shape.

    No tensor is read before all names and shapes are found to be right.
    """
    given, tensors = tensors, {_renamed(name): tensor for name, tensor in tensors.items()}
    check(
        len(given) == len(tensors),
        "the weights have a part of attention under its old name and its new one",
    )
    shapes = net.shapes()
    wanted = {
        state_dict_name(net, path): _shape_in_torch(path, leaf.shape)
        for path, leaf in _paths(shapes)
    }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    _check_same(wanted, found, "the weights are not those of the net that config.json describes")

    def leaf_of(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(_from_torch(path, tensors[state_dict_name(net, path)].read()))

    return jax.tree_util.tree_map_with_path(leaf_of, shapes)


def _check_same(wanted: Mapping[str, tuple], given: Mapping[str, tuple], otherwise: str) -> None:
    """Raises ValueError, which begins with `otherwise`, unless both have the same shapes by the same names."""
    faults = {
        "missing": sorted(set(wanted) - set(given)),
        "left over": sorted(set(given) - set(wanted)),
        "of another shape": [
            f"{name} is {given[name]} and in the net {shape}"
            for name, shape in wanted.items()
            if given.get(name, shape) != shape
        ],
    }
    said = [f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names]
    check(not said, f"{otherwise}: {'; '.join(said)}")


def _some(names: list[str], most: int = 2) -> str:
    return ", ".join(name[:120] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def _renamed(name: str) -> str:
    """The name of today for one of a legacy part of attention."""
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts and parts[-2] in LEGACY:
        parts[-2] = LEGACY[parts[-2]]
    return ".".join(parts)


def _to_torch(path: str, array: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_torch(path: str, array: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _shape_in_torch(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not path.endswith("kernel"):
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
