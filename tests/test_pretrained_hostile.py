"""Files that mean harm: nothing runs, nothing outside the folder is read, no memory is taken, one line says why.

All are opened by one other process, which notes how far its memory has grown.
"""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from example_pretrained import Call, Global, Storage, fixture, pickled, tensor, write_bin

ROOT = Path(__file__).parent.parent
SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
NUMBERS = Storage("0", np.zeros(8, np.float32))
MOST_MIB = 200


def calls(name, text):
    """A pickle that calls module.name(text), in the oldest protocol."""
    return f"c{name}\n(V{text}\ntR.".encode()


def bin_of(data, storages=(NUMBERS,), **options):
    return lambda folder: write_bin(folder / BIN, data, storages, **options)


def state(value):
    return bin_of(pickled(OrderedDict({"conv_in.weight": value})))


def stack_global(folder):
    data = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch executed\x85R."
    write_bin(folder / BIN, data)


def two_pickles(folder):
    write_bin(folder / BIN, pickled({}))
    with zipfile.ZipFile(folder / BIN, "a") as archive:
        archive.writestr("other/data.pkl", pickled({}))


def cut(name, make):
    def made(folder):
        make(folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[:-40])

    return made


def header(said, size=None, data=b"\0" * 64):
    """A safetensors file with this header."""
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    whole = struct.pack("<Q", len(text) if size is None else size) + text + data
    return lambda folder: (folder / SAFETENSORS).write_bytes(whole)


def part(dtype="F32", shape=(8,), start=0, end=32):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def index(shard, weights="conv_in.weight"):
    text = json.dumps({"weight_map": {weights: shard}})
    return lambda folder: (folder / f"{SAFETENSORS}.index.json").write_text(text)


def linked(folder):
    (folder / "shard.safetensors").symlink_to(folder.parent / "outside.safetensors")
    index("shard.safetensors")(folder)


def config(text):
    return lambda folder: (folder / "config.json").write_text(text)


def sparse_config(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(2**30)


def changed(**settings):
    def made(folder):
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | settings))

    return made


PAYLOADS = {
    "os.system": bin_of(calls("os\nsystem", "touch executed")),
    "posix.system by protocol 4": stack_global,
    "builtins.eval": bin_of(calls("builtins\neval", "open('executed', 'w')")),
    "builtins.exec": bin_of(calls("builtins\nexec", "open('executed', 'w')")),
    "open a file": bin_of(b"cbuiltins\nopen\n(Vexecuted\nVw\ntR."),
    "subprocess.Popen": bin_of(calls("subprocess\nPopen", "touch executed")),
    "getattr of a module": bin_of(calls("builtins\ngetattr", "x")),
    "a module imported": bin_of(calls("importlib\nimport_module", "antigravity")),
    "a class of another module": state(Call(Global("torch.nn.modules.linear", "Linear"), 1)),
    "OrderedDict of another module": bin_of(calls("evil\nOrderedDict", "x")),
    "an array of NumPy": bin_of(pickle.dumps(np.zeros(3), protocol=2)),
    "an extension code": bin_of(b"\x80\x02\x82\x01."),
    "an object with attributes": bin_of(b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."),
    "numbers by name": bin_of(pickled({"conv_in.weight": 3})),
    "a list": bin_of(pickled([1, 2])),
    "a storage that is not there": state(tensor(Storage("7", NUMBERS.array), (8,), (1,))),
    "a storage said to be larger": state(tensor(Storage("0", NUMBERS.array, count=10**9), (8,), (1,))),
    "a storage of whole numbers": state(tensor(Storage("0", NUMBERS.array, kind="LongStorage"), (8,), (1,))),
    "a tensor beyond its storage": state(tensor(NUMBERS, (8,), (1,), offset=4)),
    "a tensor before its storage": state(tensor(NUMBERS, (4,), (-1,), offset=3)),
    "a tensor of one number repeated": state(tensor(NUMBERS, (10**10,), (0,))),
    "a compressed pickle": bin_of(b"\0" * 300 * 2**20, compression=zipfile.ZIP_DEFLATED),
    "a pickle cut short": bin_of(pickled({"conv_in.weight": tensor(NUMBERS, (8,), (1,))})[:-10]),
    "an archive cut short": cut(BIN, bin_of(pickled({}))),
    "no archive": lambda folder: (folder / BIN).write_bytes(pickle.dumps({})),
    "two pickles": two_pickles,
    "a header of 8 GB": header(b"{}", size=8 * 2**30),
    "a header beyond any number": header(b"{}", size=2**64 - 1),
    "tensors that overlap": header({"a": part(), "b": part(start=16, end=48)}),
    "a tensor beyond the file": header({"a": part(shape=(10**9,), end=4 * 10**9)}),
    "a tensor of another size than its shape": header({"a": part(shape=(10**9,))}),
    "negative offsets": header({"a": part(start=-32, end=0)}),
    "whole numbers": header({"conv_in.weight": part("I64", (4,))}, data=b"\0" * 32),
    "an unknown type": header({"conv_in.weight": part("F7")}),
    "a header that is no JSON": header(b"\xff\xfe{]"),
    "safetensors cut short": cut(SAFETENSORS, header({"a": part()}, data=b"\0" * 32)),
    "a shard above": index("../outside.safetensors"),
    "a shard by an absolute path": index(str(ROOT / "pyproject.toml")),
    "a shard by a link": linked,
    "a shard that is the folder": index("."),
    "no weight_map": lambda folder: (folder / f"{SAFETENSORS}.index.json").write_text("{}"),
    "a weight_map of numbers": index(3),
    "JSON of 1 GB": sparse_config,
    "JSON a million deep": config("[" * 10**6),
    "JSON that is no object": config("[1]"),
    "JSON of bytes": config("\0\1\2"),
    "a net too wide to hold": changed(block_out_channels=[2**20, 2**20]),
    "a net of a billion layers": changed(layers_per_block=10**9),
    "a net of no width": changed(block_out_channels=[0, 0]),
}

HARMLESS = {"a net too wide to hold", "an object with attributes"}
"""Taken for what they are, a net and a state dict, which do not fit together."""

OPEN_ALL = """
import json, resource, sys
from pathlib import Path
from ddpm_jax.pretrained.nets import load_net
load_net(Path(sys.argv[1]))
for folder in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_net(Path(folder))
        message = None
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}\\n{error}"
    print(json.dumps([message, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]), flush=True)
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{payload: (message, growth in MiB)}, and the directory in which all were opened."""
    top = tmp_path_factory.mktemp("hostile")
    good = top / "good"
    good.mkdir()
    fixture("ddpm", good)
    shutil.copy(good / SAFETENSORS, top / "outside.safetensors")
    folders = []
    for i, make in enumerate(PAYLOADS.values()):
        folder = top / str(i)
        folder.mkdir()
        fixture("ddpm", folder)
        if "config" not in make.__qualname__ and "changed" not in make.__qualname__:
            (folder / SAFETENSORS).unlink()
        make(folder)
        folders.append(str(folder))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", OPEN_ALL, str(good), *folders]
    done = subprocess.run(command, cwd=top, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in io.StringIO(done.stdout)]
    return dict(zip(PAYLOADS, found, strict=True)), top


@pytest.mark.parametrize("payload", PAYLOADS)
def test_harm_ends_in_one_line(payload, opened):
    message, growth = opened[0][payload]
    assert message is not None, "it was taken"
    assert "\n" not in message
    assert len(message) < 500
    assert growth < MOST_MIB
    assert ("the net that config.json describes" in message) == (payload in HARMLESS)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("os.system", "asks for os.system"),
        ("posix.system by protocol 4", "asks for posix.system"),
        ("a class of another module", "asks for torch.nn.modules.linear.Linear"),
        ("a tensor of one number repeated", "reaches beyond its storage"),
        ("a storage said to be larger", "of another size"),
        ("a shard above", "lies outside"),
        ("a shard by a link", "lies outside"),
        ("JSON of 1 GB", "1,073,741,824 bytes"),
        ("whole numbers", "of type I64"),
    ],
)
def test_the_line_says_what_is_wrong(payload, words, opened):
    assert words in opened[0][payload][0]


def test_nothing_ran_and_nothing_was_written(opened):
    files = {path.name for path in opened[1].iterdir()}
    assert files == {"good", "outside.safetensors", *map(str, range(len(PAYLOADS)))}
    assert len(PAYLOADS) >= 25
