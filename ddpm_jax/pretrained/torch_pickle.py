"""Read state dicts from PyTorch's .bin files, without PyTorch and without running their code.

torch.save (since PyTorch 1.6) writes a zip archive: one pickle, NAME/data.pkl, and one file per
storage, NAME/data/KEY. Older versions wrote pickles (a magic number, a version, the byte order, the
state dict, the keys of the storages), then each storage after its number of elements.
A pickle is a program that may call any function. Three rules confine it:

1. `_confined` accepts only the instructions that torch.save writes for a state dict.
2. `STAND_INS` holds the only names a pickle may refer to. Each stands for code in this file.
3. That code checks its arguments and has no side effects.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.pretrained.untrusted_files import brief

MAX_PART_BYTES = 4 * 2**20  # bytes of the zip directory, and of the pickle
MAX_INSTRUCTIONS = 2**17  # a tensor takes about 20
MAX_AXES = 8
MAX_ARGUMENTS = 7  # of _rebuild_tensor_v2
MAX_NAME_LENGTH = 255  # characters
INSTRUCTIONS = set(
    "PROTO GLOBAL MARK EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET "
    "LONG_BINGET SETITEM SETITEMS REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE BINUNICODE BININT "
    "BININT1 BININT2 LONG1 STOP".split()
)
LIST_INSTRUCTIONS = set("PROTO EMPTY_LIST MARK APPEND APPENDS BINPUT LONG_BINPUT STOP".split())
OLDER = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
"""The first two pickles of a file from before PyTorch 1.6."""
REPLACED = {"EMPTY_DICT": b"ccollections\nOrderedDict\n)R", "BUILD": pickle.POP}
DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, KeyError)
MALFORMED = (pickle.UnpicklingError, AttributeError, EOFError, LookupError, TypeError, ValueError)


class LazyTensor(NamedTuple):
    """A tensor in a file, read on demand."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Read the tensor as float32. Raise ValueError if the file is corrupt."""
    is_float: bool = True


def read_bin(path: Path, buffers: Collection[str] = ()) -> dict[str, LazyTensor]:
    """Find the tensors of a state dict by name. Raise ValueError for any other file.

    Tensors whose names end in one of `buffers` are left out. All others must be floats, or single
    numbers, such as the alpha of a LoRA.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing, or not a file.")
    file: _Archive | _OlderFile = _OlderFile(path) if _is_older(path) else _Archive(path)
    try:
        unpickler = _Unpickler(file.state(), file)
        tensors = unpickler.load()
        file.locate(unpickler.storages)
        named = isinstance(tensors, _Items)
        if not named or not all(isinstance(tensor, LazyTensor) for tensor in tensors.values()):
            raise ValueError("it does not hold only named tensors")
        weights = {k: tensor for k, tensor in tensors.items() if not k.endswith(tuple(buffers))}
        arrays = {k: tensor for k, tensor in weights.items() if math.prod(tensor.shape) > 1}
        integers = [name for name, tensor in arrays.items() if not tensor.is_float]
        if integers:
            raise ValueError(f"it holds integers, {integers[0][:80]!r}")
    except MALFORMED as error:
        raise ValueError(f"{path} is not a state dict of floats: {brief(error)}.") from error
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if size > sum(storage.size for storage in unpickler.storages):
        raise ValueError(f"{path} has more numbers in its tensors than in its storages.")
    return weights


class _Archive:
    """A zip archive of torch.save. Raise ValueError unless it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _SmallReads(path) as file, zipfile.ZipFile(file) as archive:
                self.folder, self.sizes = _members(path, archive)
                self.pickle = archive.read(f"{self.folder}/data.pkl")
        except DAMAGED as error:
            raise ValueError(
                f"{path} is not a complete zip archive, the format of torch.save since PyTorch "
                "1.6, and not in the older format: save it again, or as safetensors."
            ) from error

    def state(self) -> bytes:
        """The pickle of the state dict, made safe to run."""
        return _confined(io.BytesIO(self.pickle))

    def name(self, key: str) -> str:
        return f"{self.folder}/data/{key}"

    def locate(self, storages: set["_Storage"]) -> None:
        """Raise ValueError unless the archive has every storage in its size."""
        if any(self.sizes.get(each.name) != each.num_bytes for each in storages):
            raise ValueError("it has a storage that is not in the archive, or of another size")

    def read(self, storage: "_Storage") -> bytes:
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(storage.name)


def _is_older(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(OLDER)) == OLDER


class _OlderFile:
    """A file of torch.save before PyTorch 1.6, whose pickles must lie in its first 4 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: dict[str, int] = {}
        with open(path, "rb") as file:
            self.pickles = io.BytesIO(file.read(MAX_PART_BYTES))
        self.pickles.seek(len(OLDER))

    def state(self) -> bytes:
        """The pickle of the state dict, made safe to run."""
        settings = _Unpickler(_confined(self.pickles), self).load()
        if settings["little_endian"] is not True:
            raise ValueError("it was not written in little-endian byte order")
        return _confined(self.pickles)

    def name(self, key: str) -> str:
        return key

    def locate(self, storages: set["_Storage"]) -> None:
        """Find each storage, after its number of elements. Call this after `state`."""
        by_name = {storage.name: storage for storage in storages}
        names = _strings(self.pickles)
        if len(by_name) < len(storages) or sorted(names) != sorted(by_name):
            raise ValueError("its storages are not those of its tensors")
        offset = self.pickles.tell()
        with open(self.path, "rb") as file:
            end = os.fstat(file.fileno()).st_size
            for name in names:
                file.seek(offset)
                if int.from_bytes(file.read(8), "little") != by_name[name].size:
                    raise ValueError("it has a storage of another size than its tensors say")
                self.offsets[name] = offset + 8
                offset += 8 + by_name[name].num_bytes
                if offset > end:
                    raise ValueError("it ends before its last storage")

    def read(self, storage: "_Storage") -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offsets[storage.name])
            return file.read(storage.num_bytes)


def _strings(file: io.BytesIO) -> list[str]:
    """The strings of a pickled list, without running the pickle. Raise ValueError for another."""
    strings = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "BINUNICODE":
            strings.append(str(argument))
        elif opcode.name not in LIST_INSTRUCTIONS:
            raise ValueError(f"its list of storages has the instruction {opcode.name}: nothing ran")
    return strings


class _SmallReads(io.FileIO):
    """A file that refuses to read more than 4 MiB at once, which bounds the zip directory."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > MAX_PART_BYTES:
            limit = f"the limit is {MAX_PART_BYTES:,} bytes"
            raise ValueError(f"{self.name} has a directory of {size:,} bytes: {limit}.")
        return super().read(size)


def _members(path: Path, archive: zipfile.ZipFile) -> tuple[str, dict[str, int]]:
    """The top folder of the archive, and {file: size in bytes}."""
    infos = archive.infolist()
    if any(i.compress_type != zipfile.ZIP_STORED or i.compress_size != i.file_size for i in infos):
        raise ValueError(f"{path} is compressed, which torch.save never does: it is not read.")
    sizes = {info.filename: info.file_size for info in infos}
    if len(sizes) < len(infos):
        raise ValueError(f"{path} holds two files with the same name.")
    pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path} holds {len(pickles)} pickles (NAME/data.pkl), not one.")
    if sizes[pickles[0]] > MAX_PART_BYTES:
        limit = f"the limit is {MAX_PART_BYTES:,} bytes"
        raise ValueError(f"{path} has a pickle of {sizes[pickles[0]]:,} bytes: {limit}.")
    order = pickles[0].replace("data.pkl", "byteorder")
    if order in sizes and (sizes[order] > 16 or archive.read(order) != b"little"):
        raise ValueError(f"{path} was not written in little-endian byte order.")
    return pickles[0].partition("/")[0], sizes


def _confined(file: io.BytesIO) -> bytes:
    """The next pickle, made safe to run. Raise ValueError for an unknown instruction or name.

    Two instructions would bypass the code of this file, so they are replaced:
    - EMPTY_DICT makes a dict, which hashes its keys. Hashing nested tuples can take exponential
      time or exhaust the stack. It becomes OrderedDict(), whose stand-in hashes only strings.
    - BUILD sets attributes of any object. In a state dict these are metadata. It becomes POP.
    """
    parts = []
    data = file.getvalue()
    argument: Any
    for count, (opcode, argument, start) in enumerate(pickletools.genops(file)):
        if count == MAX_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
        if opcode.name not in INSTRUCTIONS:
            raise ValueError(f"its pickle has the instruction {opcode.name}: nothing ran")
        if opcode.name == "GLOBAL":  # find_class checks it again; this names the first obstacle
            _stand_in(argument.replace(" ", ".", 1))
        if "PUT" in opcode.name and argument > MAX_INSTRUCTIONS:  # allocates that many entries
            raise ValueError(f"its pickle has a memo of {argument:,} entries")
        parts.append(REPLACED.get(opcode.name, data[start : file.tell()]))
    return b"".join(parts)


class _Unpickler(pickle.Unpickler):
    """Unpickle the result of `_confined`, and keep the storages it refers to."""

    def __init__(self, data: bytes, file: _Archive | _OlderFile) -> None:
        super().__init__(io.BytesIO(data))
        self.file = file
        self.storages: set[_Storage] = set()

    def find_class(self, module: str, name: str, /) -> Any:
        return _stand_in(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> "_Storage":
        """Return a storage. Raise ValueError for anything else."""
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("it has a reference that is not a storage of numbers")
        if not isinstance(size, int) or size < 0 or view not in ([], [None]):
            raise ValueError("it has a storage of impossible size, or a part of one")
        storage = _Storage(self.file, self.file.name(key), dtype, size)
        self.storages.add(storage)
        return storage


class _Storage(NamedTuple):
    """A flat array in a file."""

    file: _Archive | _OlderFile
    name: str
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
        """Read a view of the array as float32. Offset and strides count elements."""
        itemsize = self.dtype.itemsize
        steps = [stride * itemsize for stride in strides]
        try:
            data = self.file.read(self)
            view = np.ndarray(shape, self.dtype, data, offset * itemsize, steps)
        except (*DAMAGED, TypeError, ValueError) as error:
            message = f"{self.file.path} is damaged at {brief(self.name)}: {brief(error)}."
            raise ValueError(message) from error
        return view.astype(np.float32)


class _Items(dict):
    """Stand-in for OrderedDict. It takes no arguments, and only short strings as keys."""

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str) or len(key) > MAX_NAME_LENGTH:
            raise ValueError("it has a key that is not a short string")
        super().__setitem__(key, value)


def _tensor(*arguments: Any) -> LazyTensor:
    """Stand-in for _rebuild_tensor_v2. Raise ValueError for a tensor beyond its storage."""
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage) or len(arguments) > MAX_ARGUMENTS:
        raise ValueError("it has a tensor without a storage, or with too many arguments")
    axes = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not axes or not len(shape) == len(strides) <= MAX_AXES:
        raise ValueError(f"it has a tensor without shape or strides, or with over {MAX_AXES} axes")
    if not all(isinstance(n, int) and 0 <= n < 2**40 for n in (offset, *shape, *strides)):
        raise ValueError("it has a tensor with impossible sizes")
    end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and max(end, math.prod(shape)) > storage.size:
        raise ValueError("it has a tensor that reaches beyond its storage")
    is_float = storage.dtype != np.int64
    return LazyTensor(shape, partial(storage.read, offset, shape, strides), is_float)


STAND_INS = {
    "collections.OrderedDict": _Items,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
}


def _stand_in(name: str) -> Any:
    if name not in STAND_INS:
        raise ValueError(f"it asks for {name[:80]!r}: nothing ran")
    return STAND_INS[name]
