"""Read and write the tensors of a network: safetensors, whole or sharded, or PyTorch's .bin.

PyTorch is not needed. Nothing in a file is executed, nothing outside the folder or the hub's cache
is read, and tensors are read lazily.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from ddpm_jax.files import atomic_file
from ddpm_jax.pretrained.torch_pickle import LazyTensor, read_bin
from ddpm_jax.pretrained.untrusted_files import brief, inside, is_printable, read_json

NAME = "diffusion_pytorch_model"


class FileNames(NamedTuple):
    """How a library names the files of a network's weights."""

    safetensors: str
    bin: str
    buffers: frozenset[str] = frozenset()
    """Tensors that may be in the files but are not weights."""


DIFFUSERS = FileNames(NAME, NAME)
# Files from before transformers 4.31 hold the positions 0, 1, ... of the text encoder, as integers.
TRANSFORMERS = FileNames(
    "model",
    "pytorch_model",
    frozenset({"text_model.embeddings.position_ids", "embeddings.position_ids"}),
)
DTYPES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}
INTEGERS = {"I32", "I64"}
MAX_HEADER_BYTES = 4 * 2**20
MAX_PATH_LENGTH = 255  # characters


def read_tensors(
    folder: Path, variant: str | None = None, files: FileNames = DIFFUSERS
) -> dict[str, LazyTensor]:
    """Find the tensors of a network by name. Raise FileNotFoundError or ValueError.

    `variant` names the weights, such as "fp16". By default they are the files without a variant, or
    else those of the only variant in the folder.
    """
    names = {file.name for file in folder.iterdir()}
    path = folder / weights_file(names, variant, str(folder), files)
    read_format = _read_safetensors if ".safetensors" in path.name else read_bin
    read = partial(read_format, buffers=files.buffers)
    if path.suffix == ".json":
        tensors = _read_shards(folder, path, read, files.buffers)
    else:
        tensors = read(inside(folder, path))
    unprintable = [name for name in tensors if not name.isprintable()]
    if unprintable:
        raise ValueError(f"{path} has a tensor with an unprintable name: {brief(unprintable[:1])}.")
    return tensors


def weights_file(
    names: Collection[str], variant: str | None, source: str, files: FileNames = DIFFUSERS
) -> str:
    """Choose the weights, or the index of their shards, among the file names of a network.

    Raise FileNotFoundError if there are none; the message names `source`, such as owner/name, and
    the variants that exist.
    """
    stems = {"safetensors": files.safetensors, "bin": files.bin}
    pattern = re.compile(
        "|".join(
            rf"{stem}(?:\.(\w+))?\.{suffix}|{stem}\.{suffix}\.index(?:\.(\w+))?\.json"
            for suffix, stem in stems.items()
        )
    )
    matches = [match for match in map(pattern.fullmatch, names) if match]
    available = sorted({next(filter(None, match.groups()), "") for match in matches})
    variants = [name for name in available if name]
    if variant:
        candidates = [variant]
    elif len(variants) == 1:
        candidates = ["", *variants]
    else:
        candidates = [""]
    for name in candidates:
        dot = f".{name}" if name else ""
        for suffix, stem in stems.items():
            for file in (f"{stem}{dot}.{suffix}", f"{stem}.{suffix}.index{dot}.json"):
                if file in names:
                    return file
    stem = files.safetensors
    expected = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors or .bin"
    message = f"{source} holds no weights ({expected})"
    if available:
        message += f": the variants there are {', '.join(name or 'None' for name in available)}"
    raise FileNotFoundError(f"{message}.")


def _read_shards(
    folder: Path,
    index: Path,
    read: Callable[[Path], dict[str, LazyTensor]],
    buffers: frozenset[str],
) -> dict[str, LazyTensor]:
    weight_map = read_json(inside(folder, index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        is_printable(name, MAX_PATH_LENGTH) for name in weight_map.values()
    ):
        raise ValueError(f"{index} has no weight_map of tensor names to file names.")
    names_by_shard = defaultdict(set)
    for name, shard in weight_map.items():
        names_by_shard[shard].add(name)
    result: dict[str, LazyTensor] = {}
    # Check each shard before reading the next one, so that `result` never outgrows the index.
    for shard, names in sorted(names_by_shard.items()):
        tensors = read(inside(folder, folder / shard))
        names -= buffers
        missing = sorted(names - set(tensors))
        if missing:
            listed = brief(", ".join(missing[:4]))
            raise ValueError(f"{index} lists {listed} in files that do not hold them.")
        unlisted = sorted(set(tensors) - names)
        if unlisted:
            found = brief(", ".join(unlisted[:4]))
            raise ValueError(f"{index} does not list {found} in the files that hold them.")
        result |= tensors
    return result


def _read_safetensors(path: Path, buffers: Collection[str]) -> dict[str, LazyTensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        limit = f"the limit is {MAX_HEADER_BYTES:,} bytes"
        raise ValueError(f"{path} has a header of {size:,} bytes: {limit}.")
    dtypes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                if name in buffers:
                    continue
                view = file.get_slice(name)
                dtypes[name] = view.get_dtype()
                shapes[name] = tuple(view.get_shape())
    except (SafetensorError, OSError) as error:
        message = f"{path} is not a complete safetensors file: {brief(error)}."
        raise ValueError(message) from error
    # A single number may be an integer: the alpha of a LoRA.
    unsupported = sorted(
        {d for name, d in dtypes.items() if math.prod(shapes[name]) > 1 or d not in INTEGERS}
        - set(DTYPES)
    )
    if unsupported:
        types = ", ".join(unsupported)
        supported = ", ".join(DTYPES)
        raise ValueError(f"{path} holds tensors of type {types}: only {supported} are supported.")
    return {name: LazyTensor(shape, _reader(path, name)) for name, shape in shapes.items()}


def _reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with safe_open(path, framework="numpy") as file:
            return np.asarray(file.get_tensor(name), np.float32)

    return read


def read_tensor_file(path: Path) -> dict[str, LazyTensor]:
    """Find the tensors of one file by name: .safetensors, or else what PyTorch saved."""
    return _read_safetensors(path, ()) if path.suffix == ".safetensors" else read_bin(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file that `read_tensor_file` read; of others there is none."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def write_tensor_file(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically, with its metadata."""
    data = save(dict(tensors), metadata={"format": "pt", **metadata})
    with atomic_file(path) as file:
        file.write(data)


def check_no_other_weights(folder: Path, files: FileNames = DIFFUSERS) -> None:
    """Raise ValueError if the folder has weights that `write_tensors` would not replace.

    diffusers looks for shards first, so it would open shards of an earlier save.
    """
    written = f"{files.safetensors}.safetensors"
    found = [path.name for stem in set(files[:2]) for path in folder.glob(f"{stem}*")]
    others = sorted(set(found) - {written})
    if others:
        listed = ", ".join(others[:2])
        raise ValueError(f"{folder} holds other weights ({listed}): save to another folder.")


def write_tensors(
    folder: Path, tensors: Mapping[str, np.ndarray], files: FileNames = DIFFUSERS
) -> Path:
    """Write one safetensors file as diffusers does. Return its path."""
    path = folder / f"{files.safetensors}.safetensors"
    save_file(dict(tensors), path, metadata={"format": "pt"})
    # The library makes it readable by its owner alone.
    path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o444)
    return path
