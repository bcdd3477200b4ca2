"""Nets of diffusers that lie in tests/fixtures, and state dicts in the format of torch.save, made without PyTorch."""

import io
import json
import pickle
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
    """The arrays of a fixture; its net is left in the folder as diffusers saves it."""
    with np.load(FIXTURES / f"unet2d_{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    weights = {
        key.removeprefix("weights/"): arrays[key] for key in arrays if key.startswith("weights/")
    }
    (folder / "config.json").write_text(str(arrays["config"]))
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return arrays, json.loads(str(arrays["config"])), weights


class Global:
    """A name of a module, as a pickle refers to it."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Call:
    """A call of such a name, which a pickle has made when it is read."""

    def __init__(self, function: Global, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return _importable(self.function), self.arguments


def _importable(name: Global):
    """An object that pickles as this name."""
    made = types.new_class(name.name)
    made.__module__, made.__qualname__ = name.module, name.name
    for end in range(1, name.module.count(".") + 2):  # its packages too
        package = ".".join(name.module.split(".")[:end])
        module = sys.modules.setdefault(package, types.ModuleType(package))
    if not hasattr(module, name.name):
        setattr(module, name.name, made)
    return getattr(module, name.name)


class Storage:
    """A run of numbers, kept beside the pickle."""

    def __init__(
        self, key: str, array: np.ndarray, kind: str = "FloatStorage", count: int | None = None
    ):
        self.key, self.array, self.kind = key, array, kind
        self.count = array.size if count is None else count


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", _importable(Global("torch", obj.kind)), obj.key, "cpu", obj.count
        return None


def pickled(value) -> bytes:
    """A pickle of protocol 2, as torch.save writes; the modules it names need not exist."""
    before = set(sys.modules)
    file = io.BytesIO()
    try:
        _Pickler(file, protocol=2).dump(value)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    return file.getvalue()


def tensor(storage: Storage, shape, strides, offset=0) -> Call:
    return Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        storage,
        offset,
        shape,
        strides,
        False,
        OrderedDict(),
    )


def write_bin(path: Path, data: bytes, storages=(), compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def save_bin(path: Path, weights: dict[str, np.ndarray]) -> None:
    """The weights as torch.save writes them."""
    storages = [
        Storage(str(i), np.ascontiguousarray(w, np.float32)) for i, w in enumerate(weights.values())
    ]
    strides = [tuple(stride // 4 for stride in storage.array.strides) for storage in storages]
    tensors = [
        tensor(s, s.array.shape, stride) for s, stride in zip(storages, strides, strict=True)
    ]
    write_bin(path, pickled(OrderedDict(zip(weights, tensors, strict=True))), storages)
