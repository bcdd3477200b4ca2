"""PyTorch's .bin files read without PyTorch: nothing that a file says is called, its pickle is only looked through.

The format (torch.save since 1.6): a zip archive with one pickle, NAME/data.pkl, and one file a storage, NAME/data/KEY.
A state dict needs few of a pickle's instructions, and of names just those that make up a tensor. All others end in a
ValueError.
"""

import io
import math
import os
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.errors import check
from ddpm_jax.pretrained.untrusted_files import brief

LARGEST_PART = 4 * 2**20
MOST_INSTRUCTIONS, MOST_AXES, LONGEST_KEY = 2**17, 8, 80
STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
}
DICT, TENSOR, PARAMETER = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)
NAMES = {DICT, TENSOR, PARAMETER, *STORAGES}
DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, KeyError, NotImplementedError)


class Name(NamedTuple):
    """A global name that a pickle refers to."""

    name: str


class Storage(NamedTuple):
    """A run of numbers in the archive."""

    dtype: np.dtype
    key: str
    size: int


class Stored(NamedTuple):
    """A tensor that lies in a file."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Its numbers as float32; raises ValueError where the file does not hold them."""


class _Contents(io.FileIO):
    """A file of which only small parts can be read, such as the directory of a zip archive, and its pickle."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        check(size <= LARGEST_PART, f"{self.name} has a directory of {size:,} bytes, which is too much")
        return super().read(size)


def read_bin(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict by name; raises ValueError for anything else that the file holds."""
    check(path.is_file(), f"{path} is missing, or no file")
    try:
        with _Contents(path) as file, zipfile.ZipFile(file) as archive:
            folder, sizes = _contents(path, archive)
            data = archive.read(f"{folder}/data.pkl")
    except DAMAGED as error:
        raise ValueError(
            f"{path} is no whole zip archive, as torch.save writes since PyTorch 1.6: save it anew, or as safetensors"
        ) from error
    try:
        machine = _Machine(path, folder, sizes)
        found = machine.run(data)
    except (ValueError, IndexError, KeyError, TypeError) as error:  # of an instruction that finds not what it needs
        raise ValueError(f"{path} is not a state dict of floats: {brief(error)}") from error
    size = sum(math.prod(tensor.shape) for tensor in found.values())
    held = sum(storage.size for storage in machine.storages)
    check(size <= held, f"{path} has more numbers in its tensors than it holds")
    return found


def _numbers(path: Path, member: str, dtype: np.dtype, offset: int, shape, strides) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(member)
        steps = tuple(stride * dtype.itemsize for stride in strides)
        return np.ndarray(shape, dtype, data, offset * dtype.itemsize, steps).astype(np.float32)
    except (*DAMAGED, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged at {brief(member)}: {brief(error)}") from error


def _contents(path: Path, archive: zipfile.ZipFile) -> tuple[str, dict[str, int]]:
    """The archive's folder, and the bytes of each of its files."""
    infos = archive.infolist()
    stored = all(i.compress_type == zipfile.ZIP_STORED and i.compress_size == i.file_size for i in infos)
    check(stored, f"{path} is compressed, which torch.save never does: it is not read")
    sizes = {info.filename: info.file_size for info in infos}
    check(len(sizes) == len(infos), f"{path} holds two files of one name")
    pickles = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    check(len(pickles) == 1, f"{path} holds {len(pickles)} pickles (NAME/data.pkl), not one")
    check(sizes[pickles[0]] <= LARGEST_PART, f"{path} has a pickle of {sizes[pickles[0]]:,} bytes, which is too much")
    order = pickles[0].replace("data.pkl", "byteorder")
    known = order not in sizes or (sizes[order] < 16 and archive.read(order) == b"little")
    check(known, f"{path} was written with another order of bytes")
    return pickles[0].partition("/")[0], sizes


class _Machine:
    """The instructions of a pickle (pickletools documents each) over a stack of plain values and records."""

    def __init__(self, path: Path, folder: str, sizes: dict[str, int]):
        self.path, self.folder, self.sizes = path, folder, sizes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: set[Storage] = set()

    def run(self, data: bytes) -> dict[str, Stored]:
        """The tensors by name that the pickle stands for."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            check(count < MOST_INSTRUCTIONS, f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
            if opcode.name == "STOP":
                break
            if opcode.name in VALUES:
                self.stack.append(VALUES[opcode.name](argument))
            else:
                step = STEPS.get(opcode.name)
                check(step is not None, f"its pickle has the instruction {opcode.name}, which none needs: nothing ran")
                step(self, argument)
        check(len(self.stack) == 1 and not self.marks, f"it leaves {len(self.stack)} values, not one")
        found = self.stack[0]
        whole = isinstance(found, dict) and all(isinstance(value, Stored) for value in found.values())
        check(whole, "it does not hold tensors by name alone")
        return found

    def name(self, argument: str) -> None:
        name = argument.replace(" ", ".")
        check(name in NAMES, f"it asks for {name[:80]!r}, which no state dict of floats needs: nothing ran")
        self.stack.append(Name(name))

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int | None) -> None:
        if count is not None:
            self.marks.append(len(self.stack) - count)
        values = tuple(self.since_mark())
        self.stack.append(values)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        check(isinstance(target, dict), "it sets items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            check(isinstance(key, str), "it does not hold tensors by name alone")
            target[key] = value

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def build(self, _: Any) -> None:
        self.stack.pop()  # attributes, such as the _metadata of a state dict: not set

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        check(isinstance(function, Name) and isinstance(arguments, tuple), "it calls what is no name")
        if function.name == DICT:
            check(arguments == (), "it makes a dict of something")
            self.stack.append({})
        elif function.name == PARAMETER:
            check(isinstance(arguments[0], Stored), "it makes a parameter of what is no tensor")
            self.stack.append(arguments[0])
        else:
            check(function.name == TENSOR, f"it calls {function.name}")
            self.stack.append(self.tensor(*arguments[:4]))

    def storage(self, _: Any) -> None:
        kind, name, key, _, size = self.stack.pop()
        known = kind == "storage" and isinstance(name, Name) and isinstance(key, str) and isinstance(size, int)
        known = known and name.name in STORAGES and len(key) <= LONGEST_KEY
        check(known, "it refers to what is no storage of floats")
        dtype = STORAGES[name.name]
        there = self.sizes.get(f"{self.folder}/data/{key}") == size * dtype.itemsize
        check(there, "it has a storage that is not in the archive, or of another size there")
        self.stack.append(Storage(dtype, key, size))
        self.storages.add(self.stack[-1])

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Stored:
        known = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
        check(known and len(shape) == len(strides) <= MOST_AXES, "it has a tensor without storage, shape or strides")
        numbers = (offset, *shape, *strides)
        check(all(isinstance(n, int) and 0 <= n < 2**40 for n in numbers), "it has a tensor of sizes that none has")
        end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        within = 0 in shape or (end <= storage.size and math.prod(shape) <= storage.size)
        check(within, "it has a tensor that reaches beyond its storage")
        member = f"{self.folder}/data/{storage.key}"
        return Stored(shape, partial(_numbers, self.path, member, storage.dtype, offset, shape, strides))


VALUES = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"), lambda value: value),
}
STEPS = {
    "PROTO": lambda machine, _: None,
    "GLOBAL": _Machine.name,
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}
