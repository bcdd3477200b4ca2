"""PyTorch's .bin files read without PyTorch, by an unpickler that knows the few names that make up a tensor.

The format (torch.save since 1.6): a zip archive with one pickle, NAME/data.pkl, and one file a storage, NAME/data/KEY.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.errors import check

LARGEST_PICKLE = 16 * 2**20
DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
}


class Tensor(NamedTuple):
    """A tensor in a .bin file; its numbers are read when they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Storage(NamedTuple):
    """A run of numbers in the archive."""

    dtype: np.dtype
    key: str
    size: int


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name; raises ValueError for anything else that the file holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            folder, sizes = _contents(path, archive)
            with archive.open(f"{folder}/data.pkl") as file:
                found = _load(_Unpickler(file, path, folder, sizes), path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip archive as torch.save writes since PyTorch 1.6: {error}") from error
    # What a pickle says may hide the methods of an OrderedDict, so those of dict are called.
    entries = list(dict.items(found)) if isinstance(found, dict) else [(None, found)]
    whole = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries)
    check(whole, f"{path} does not hold tensors by name alone")
    return dict(entries)


def _load(unpickler: pickle.Unpickler, path: Path) -> Any:
    try:
        return unpickler.load()
    except Exception as error:  # whatever a pickle that is not well formed makes of the unpickler
        raise ValueError(f"{path} is not a state dict: it {error or 'ends too soon'}") from error


def _contents(path: Path, archive: zipfile.ZipFile) -> tuple[str, dict[str, int]]:
    """The archive's folder, and the bytes of each of its files."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    check(len(pickles) == 1, f"{path} holds {len(pickles)} pickles (NAME/data.pkl), not one")
    check(sizes[pickles[0]] <= LARGEST_PICKLE, f"{path} has a pickle of {sizes[pickles[0]]:,} bytes, which is too much")
    order = pickles[0].replace("data.pkl", "byteorder")
    check(order not in sizes or archive.read(order) == b"little", f"{path} was written with another order of bytes")
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    check(stored, f"{path} is compressed, which torch.save never does: it is not read")
    return pickles[0].partition("/")[0], sizes


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, folder: str, sizes: dict[str, int]):
        super().__init__(file)
        self.path, self.folder, self.sizes = path, folder, sizes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _data_of
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which no state dict of floats needs: nothing was run")

    def persistent_load(self, said: Any) -> Storage:
        kind, dtype, key, _, count = said
        whole = kind == "storage" and isinstance(dtype, np.dtype) and isinstance(key, str) and isinstance(count, int)
        if not whole or self.sizes.get(f"{self.folder}/data/{key}") != count * dtype.itemsize:
            raise pickle.UnpicklingError("holds a storage that is not in the archive, or of another size there")
        return Storage(dtype, key, count)

    def _tensor(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
        whole = isinstance(storage, Storage) and len(shape) == len(strides)
        whole = whole and all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides))
        end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False)) if whole else 0
        if not whole or (0 not in shape and end > storage.size) or math.prod(shape) > storage.size:
            raise pickle.UnpicklingError("holds a tensor that reaches beyond its storage")

        def read() -> np.ndarray:
            with zipfile.ZipFile(self.path) as archive:
                numbers = np.frombuffer(archive.read(f"{self.folder}/data/{storage.key}"), storage.dtype)
            steps = tuple(stride * storage.dtype.itemsize for stride in strides)
            return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False).astype(np.float32)

        return Tensor(tuple(shape), read)


def _data_of(data: Tensor, *_: Any) -> Tensor:
    return data
