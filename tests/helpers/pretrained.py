"""Networks of diffusers from tests/fixtures, and files of torch.save made without PyTorch."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
NETS = sorted(path.stem.removeprefix("unet2d_") for path in FIXTURES.glob("unet2d_*.npz"))


def fixture(name: str, folder: Path):
    """Write a fixture's network to the folder as diffusers saves it.

    Return the arrays of the fixture, its config and its weights.
    """
    with np.load(FIXTURES / f"unet2d_{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    weights = {
        key.removeprefix("weights/"): arrays[key] for key in arrays if key.startswith("weights/")
    }
    (folder / "config.json").write_text(str(arrays["config"]))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return arrays, json.loads(str(arrays["config"])), weights


class Global:
    """A name in a module, as a pickle refers to it."""

    def __init__(self, module: str, name: str):
        self.module = module
        self.name = name


class Call:
    """A call of such a name, which the reader of the pickle makes."""

    def __init__(self, function: Global, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return _importable(self.function), self.arguments


def _importable(name: Global):
    """An object that is pickled as this name. Its module and packages are created if missing."""
    cls = types.new_class(name.name)
    cls.__module__ = name.module
    cls.__qualname__ = name.name
    parts = name.module.split(".")
    for end in range(1, len(parts) + 1):
        package = ".".join(parts[:end])
        module = sys.modules.setdefault(package, types.ModuleType(package))
    if not hasattr(module, name.name):
        setattr(module, name.name, cls)
    return getattr(module, name.name)


class Storage:
    """A flat array that is stored beside the pickle."""

    def __init__(
        self,
        key: str,
        array: np.ndarray,
        kind: str = "FloatStorage",
        size: int | None = None,
        view: tuple = (),
    ):
        self.key = key
        self.array = array
        self.kind = kind
        # The end of the reference: (None,) in the older format.
        self.view = view
        # The number of elements that the pickle claims.
        self.size = array.size if size is None else size


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = _importable(Global("torch", obj.kind))
            return "storage", kind, obj.key, "cpu", obj.size, *obj.view
        return None


def pickled(value) -> bytes:
    """A pickle of protocol 2, as torch.save writes it. The modules it names need not exist."""
    before = set(sys.modules)
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=2).dump(value)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    return file.getvalue()


def tensor(storage: Storage, shape, strides, offset=0) -> Call:
    """A view of a storage; offset and strides count elements."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, OrderedDict())


def write_bin(path: Path, data: bytes, storages=(), compression=zipfile.ZIP_STORED) -> None:
    """Write a pickle and its storages in the archive format of torch.save."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def write_older_bin(path: Path, data: bytes, storages=(), keys=None, little_endian=True) -> None:
    """Write a pickle and its storages in the format of torch.save before PyTorch 1.6.

    `keys` is the pickle of the storages' keys, by default the right one.
    """
    settings = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, settings)]
    keys = keys or pickle.dumps([storage.key for storage in storages], 2)
    counted = [struct.pack("<q", each.size) + each.array.tobytes() for each in storages]
    path.write_bytes(b"".join([*head, data, keys, *counted]))


def save_bin(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Write weights as torch.save does: as float32, or as integers where they are."""
    storages = []
    tensors = {}
    for i, (name, weight) in enumerate(weights.items()):
        is_integer = weight.dtype == np.int64
        array = np.ascontiguousarray(weight, np.int64 if is_integer else np.float32)
        storage = Storage(str(i), array, kind="LongStorage" if is_integer else "FloatStorage")
        storages.append(storage)
        strides = tuple(stride // array.itemsize for stride in array.strides)
        tensors[name] = tensor(storage, storage.array.shape, strides)
    write_bin(path, pickled(OrderedDict(tensors)), storages)
