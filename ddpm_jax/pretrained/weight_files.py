"""Tensors of a folder in the diffusers layout: safetensors, whole or in shards, or PyTorch's .bin, without PyTorch.

Nothing of a file is executed, nothing outside the folder is read, and a tensor is read when it is asked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ddpm_jax.errors import check
from ddpm_jax.pretrained.torch_pickle import LazyTensor, read_bin
from ddpm_jax.pretrained.untrusted_files import brief, inside, read_json

NAME = "diffusion_pytorch_model"
WEIGHTS = re.compile(
    rf"{NAME}(?:\.(\w+))?\.(?:safetensors|bin)|{NAME}\.(?:safetensors|bin)\.index(?:\.(\w+))?\.json"
)
DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}
MAX_HEADER_BYTES = 4 * 2**20
MAX_PATH_LENGTH = 255


def read_tensors(folder: Path, variant: str | None = None) -> dict[str, LazyTensor]:
    """The tensors of a net by name, of a variant such as fp16; raises FileNotFoundError or ValueError.

    Without one the plain files are taken, or those of the only variant there is.
    """
    path = folder / weights_file({file.name for file in folder.iterdir()}, variant, str(folder))
    read = _read_safetensors if ".safetensors" in path.name else read_bin
    found = (
        _read_shards(folder, path, read) if path.suffix == ".json" else read(inside(folder, path))
    )
    strange = [name for name in found if not name.isprintable()]
    check(not strange, f"{path} has a tensor by the name of {brief(strange[:1])}")
    return found


def weights_file(names: Collection[str], variant: str | None, what: str) -> str:
    """Of the files of a net, the one that `read_tensors` takes: its weights, or the index of their shards.

    Raises FileNotFoundError that says which weights `what`, such as owner/name, holds.
    """
    there = sorted({match[1] or match[2] or "" for match in map(WEIGHTS.fullmatch, names) if match})
    only = [name for name in there if name]
    for name in [variant] if variant else ["", *(only if len(only) == 1 else [])]:
        dot = f".{name}" if name else ""
        for end in ("safetensors", "bin"):
            for file in (f"{NAME}{dot}.{end}", f"{NAME}.{end}.index{dot}.json"):
                if file in names:
                    return file
    wanted = f"{NAME}.{variant}.safetensors" if variant else f"{NAME}.safetensors or .bin"
    others = (
        f"; there are {', '.join(name or 'those of no variant' for name in there)}" if there else ""
    )
    raise FileNotFoundError(f"{what} holds no weights ({wanted}){others}")


def _read_shards(
    folder: Path, index: Path, read: Callable[[Path], dict[str, LazyTensor]]
) -> dict[str, LazyTensor]:
    places = read_json(inside(folder, index)).get("weight_map")
    if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
        raise ValueError(f"{index} has no weight_map of tensor names to file names")
    placed = defaultdict(set)
    for name, shard in places.items():
        placed[shard].add(name)
    found: dict[str, LazyTensor] = {}
    for shard, names in sorted(
        placed.items()
    ):  # each checked before the next is read: `found` stays within the index
        tensors = read(inside(folder, folder / shard))
        lost, others = sorted(names - set(tensors)), sorted(set(tensors) - names)
        check(
            not lost, f"{index} places {brief(', '.join(lost[:4]))} in files that do not hold them"
        )
        check(
            not others,
            f"{index} does not place {brief(', '.join(others[:4]))} where they are found",
        )
        found |= tensors
    return found


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PATH_LENGTH and value.isprintable()


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    check(size <= MAX_HEADER_BYTES, f"{path} has a header of {size:,} bytes, which is too much")
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            said = {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in found.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {brief(error)}") from error
    strange = sorted({dtype for dtype, _ in said.values()} - set(DTYPES))
    check(
        not strange,
        f"{path} holds tensors of type {', '.join(strange)}; weights are {', '.join(DTYPES)}",
    )
    return {name: LazyTensor(shape, _reader(path, name)) for name, (_, shape) in said.items()}


def _reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return np.asarray(file.get_tensor(name), np.float32)

    return read


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Writes one safetensors file, as diffusers does."""
    path = folder / f"{NAME}.safetensors"
    save_file(dict(tensors), path, metadata={"format": "pt"})
    return path
