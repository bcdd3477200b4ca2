"""Hostile files. Each payload is written to a folder that otherwise holds a diffusers network."""

import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from helpers.pretrained import (
    Call,
    Global,
    Storage,
    pickled,
    tensor,
    write_bin,
    write_older_bin,
)

ROOT = Path(__file__).parents[2]
SAFETENSORS = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"
CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
INDEX = "model_index.json"
OLDER = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
NUMBERS = Storage("0", np.zeros(8, np.float32))


def calls(name, text):
    """A pickle that calls a function with a text, in the oldest protocol.

    `name` is the module and the function, with a newline between them.
    """
    return f"c{name}\n(V{text}\ntR.".encode()


def bin_of(data, storages=(NUMBERS,), **options):
    """Write a .bin file with this pickle."""
    return lambda folder: write_bin(folder / BIN, data, storages, **options)


def state(value):
    """Write a .bin file whose state dict holds one value."""
    return bin_of(pickled(OrderedDict({"conv_in.weight": value})))


def older(data, storages=(NUMBERS,), **options):
    """Write a .bin file with this pickle in the format before PyTorch 1.6."""
    return lambda folder: write_older_bin(folder / BIN, data, storages, **options)


def older_state(storage, **options):
    """Write a state dict of one tensor of 8 numbers, with its storage, in that format."""
    data = pickled(OrderedDict({"conv_in.weight": tensor(storage, (8,), (1,))}))
    return older(data, (storage,), **options)


def second_pickle(name):
    """Write an archive with a second pickle of this name."""

    def write(folder):
        write_bin(folder / BIN, pickled({}))
        with warnings.catch_warnings(), zipfile.ZipFile(folder / BIN, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(name, pickled({}))

    return write


def loop(folder):
    """Write files that are links to each other, or to themselves."""
    (folder / SAFETENSORS).symlink_to(folder / f"{SAFETENSORS}.index.json")
    (folder / f"{SAFETENSORS}.index.json").symlink_to(folder / SAFETENSORS)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")


HASH_BOMB = b")" + b"q\x00h\x00\x86" * 60
"""A pair of a pair of a pair ..., each of the same thing twice: its hash takes 2^60 steps."""


def directory(claimed, zip64=False):
    """Write a sparse archive whose end record claims a directory of this many bytes."""

    def write(folder):
        with open(folder / BIN, "wb") as file:
            file.truncate(claimed)
            file.seek(0, 2)
            if zip64:
                record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, claimed, 0)
                locator = struct.pack("<IQI", 0, claimed, 1)
                file.write(b"PK\x06\x06" + record + b"PK\x06\x07" + locator)
            size = 2**32 - 1 if zip64 else claimed
            file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0))

    return write


def cut(name, write):
    """Write a file and cut off its last 40 bytes."""

    def write_cut(folder):
        write(folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[:-40])

    return write_cut


def header(content, size=None, data=b"\0" * 64):
    """Write a safetensors file with this header, and with a claimed `size` of it."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    file = struct.pack("<Q", len(text) if size is None else size) + text + data
    return lambda folder: (folder / SAFETENSORS).write_bytes(file)


def many_tensors(n):
    """Write a valid header of n empty tensors. It is built only when it is written."""
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'

    def write(folder):
        content = b"{" + b",".join(entry % i for i in range(n)) + b"}"
        header(content, data=b"")(folder)

    return write


def part(dtype="F32", shape=(8,), start=0, end=32):
    """The entry of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def index(shard, weights="conv_in.weight"):
    """Write an index of shards that places one tensor in this shard."""
    text = json.dumps({"weight_map": {weights: shard}})
    return lambda folder: (folder / f"{SAFETENSORS}.index.json").write_text(text)


def linked(folder):
    """Write an index whose shard is a link out of the folder."""
    (folder / "shard.safetensors").symlink_to(folder.parent / "outside.safetensors")
    index("shard.safetensors")(folder)


def one_shard_by_many_names(folder):
    """Write an index that names the same shard by 100 paths."""
    header({"a": part()}, data=b"\0" * 32)(folder)
    (folder / SAFETENSORS).rename(folder / "shard")
    weight_map = {str(i): "./" * i + "shard" for i in range(100)}
    (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def config(text, name=CONFIG):
    """Write a JSON file with this text."""
    return lambda folder: (folder / name).write_text(text)


def sparse_config(name):
    """Write a JSON file of 1 GiB of zero bytes."""

    def write_config(folder):
        with open(folder / name, "wb") as file:
            file.truncate(2**30)

    return write_config


def changed(name=CONFIG, **settings):
    """Change settings in a JSON file."""

    def write(folder):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | settings))

    return write


def repeated(text, size):
    """Write a JSON list that repeats a text up to about this many bytes."""
    return config("[" + ",".join([text] * (size // (len(text) + 1))) + "]")


def linked_config(folder):
    """Make the scheduler's folder a link out of the folder."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / SCHEDULER).write_text("{}")
    (folder / "scheduler").symlink_to(outside)


DEEP = "[" * 900 + "]" * 900
LONG = "B" * 10**6
PARTS = ["diffusers"] * 10**5

PAYLOADS = {
    "os.system": bin_of(calls("os\nsystem", "touch executed")),
    "posix.system by protocol 4": bin_of(
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch executed\x85R."
    ),
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
    "an object with attributes": bin_of(
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    ),
    "numbers by name": bin_of(pickled({"conv_in.weight": 3})),
    "a list": bin_of(pickled([1, 2])),
    "a storage that is not there": state(tensor(Storage("7", NUMBERS.array), (8,), (1,))),
    "a storage that claims to be larger": state(
        tensor(Storage("0", NUMBERS.array, size=10**9), (8,), (1,))
    ),
    "a storage of integers": state(
        tensor(Storage("0", NUMBERS.array, kind="LongStorage"), (8,), (1,))
    ),
    "a tensor beyond its storage": state(tensor(NUMBERS, (8,), (1,), offset=4)),
    "a tensor before its storage": state(tensor(NUMBERS, (4,), (-1,), offset=3)),
    "a tensor of one repeated number": state(tensor(NUMBERS, (10**10,), (0,))),
    "one storage for many tensors": bin_of(
        pickled({str(i): tensor(NUMBERS, (8,), (1,)) for i in range(9)})
    ),
    "a tensor with many axes": state(tensor(NUMBERS, (1,) * 40000, (1,) * 40000)),
    "a key that takes forever to hash": bin_of(b"\x80\x02}" + HASH_BOMB + b"K\x01s."),
    "the same key as an argument": bin_of(
        b"\x80\x02ccollections\nOrderedDict\n" + HASH_BOMB + b"K\x01\x86\x85\x85R."
    ),
    "a key nested too deep to hash": bin_of(b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s."),
    "a memo of a large number": bin_of(b"\x80\x02}r\xff\xff\xff\x7f."),
    "attributes of a class": bin_of(
        b"\x80\x02ccollections\nOrderedDict\nN}X\x0b\x00\x00\x00__setitem__Ns\x86b."
    ),
    "attributes of a type": bin_of(
        b"\x80\x02ctorch\nBFloat16Storage\n(K\x03X\x01\x00\x00\x00|NNNK@K@K?tb."
    ),
    "two files with the same name": second_pickle("archive/data.pkl"),
    "a loop of links": loop,
    "a compressed pickle": lambda folder: bin_of(
        bytes(16 * 2**20), compression=zipfile.ZIP_DEFLATED
    )(folder),
    "a truncated pickle": bin_of(pickled({"conv_in.weight": tensor(NUMBERS, (8,), (1,))})[:-10]),
    "a truncated archive": cut(BIN, bin_of(pickled({}))),
    "a pickle without an archive": lambda folder: (folder / BIN).write_bytes(pickle.dumps({})),
    "two pickles": second_pickle("other/data.pkl"),
    "os.system in the older format": older(calls("os\nsystem", "touch executed")),
    "os.system as the older list of storages": older_state(
        NUMBERS, keys=calls("os\nsystem", "touch executed")
    ),
    "an older list with other storages": older_state(NUMBERS, keys=pickle.dumps(["1"], 2)),
    "an older list with a storage too many": older_state(NUMBERS, keys=pickle.dumps(["0", "1"], 2)),
    "an older storage of another size": older(
        pickled({"conv_in.weight": tensor(NUMBERS, (8,), (1,))}),
        (Storage("0", NUMBERS.array, size=7),),
    ),
    "an older storage larger than the file": older_state(Storage("0", NUMBERS.array, size=10**15)),
    "an older storage of negative size": older_state(Storage("0", NUMBERS.array, size=-8)),
    "a part of an older storage": older_state(Storage("0", NUMBERS.array, view=(("1", 0, 8),))),
    "an older storage of two types": older(
        pickled(
            {
                "conv_in.weight": tensor(NUMBERS, (8,), (1,)),
                "conv_in.bias": tensor(Storage("0", NUMBERS.array, "LongStorage"), (8,), (1,)),
            }
        )
    ),
    "a big-endian older file": older_state(NUMBERS, little_endian=False),
    "older settings of 3 MiB of dicts": lambda folder: (folder / BIN).write_bytes(
        OLDER + b"}" * (3 * 2**20) + b"."
    ),
    "older pickles of 16 MiB": older(b"}" * 2**24 + b"."),
    "truncated older storages": cut(BIN, older_state(Storage("0", np.zeros(16, np.float32)))),
    "an older file of two numbers": lambda folder: (folder / BIN).write_bytes(OLDER),
    "a header of 8 GB": header(b"{}", size=8 * 2**30),
    "a header of 2^64 - 1 bytes": header(b"{}", size=2**64 - 1),
    "tensors that overlap": header({"a": part(), "b": part(start=16, end=48)}),
    "a tensor beyond the file": header({"a": part(shape=(10**9,), end=4 * 10**9)}),
    "a tensor smaller than its shape": header({"a": part(shape=(10**9,))}),
    "negative offsets": header({"a": part(start=-32, end=0)}),
    "integers": header({"conv_in.weight": part("I64", (4,))}, data=b"\0" * 32),
    "an unknown type": header({"conv_in.weight": part("F7")}),
    "a header that is not JSON": header(b"\xff\xfe{]"),
    "truncated safetensors": cut(SAFETENSORS, header({"a": part()}, data=b"\0" * 32)),
    "a shard above the folder": index("../outside.safetensors"),
    "a shard by an absolute path": index(str(ROOT / "pyproject.toml")),
    "a shard by a link": linked,
    "a shard that is the folder": index("."),
    "no weight_map": lambda folder: (folder / f"{SAFETENSORS}.index.json").write_text("{}"),
    "a weight_map of numbers": index(3),
    "a pickle of 16 MiB of dicts": bin_of(b"}" * 2**24 + b"."),
    "a pickle of 3 MiB of dicts": bin_of(b"}" * (3 * 2**20) + b"."),
    "a pickle that leaves many values": bin_of(b"}" * 2**16 + b"."),
    "a directory of 400 MB": directory(400 * 2**20),
    "a zip64 directory of 400 MB": directory(400 * 2**20, zip64=True),
    "a header of 16 MiB": many_tensors(300_000),
    "a header of 4 MiB": many_tensors(72_000),
    "one shard under many names": one_shard_by_many_names,
    "a shard with a long name": index("a" * 10**4),
    "a tensor with a newline in its name": header({"a\nb": part()}, data=b"\0" * 32),
    "JSON of 1 GiB": sparse_config(CONFIG),
    "JSON of 8 MiB": repeated(DEEP, 2**23),
    "JSON of 2 MiB, deep": repeated(DEEP, 2**21),
    "JSON of 2 MiB, flat": repeated("[[]]", 2**21),
    "JSON nested a million deep": config("[" * 10**6),
    "JSON that is not an object": config("[1]"),
    "JSON of binary data": config("\0\1\2"),
    "a network too wide for memory": changed(block_out_channels=[2**20, 2**20]),
    "a network of a billion layers": changed(layers_per_block=10**9),
    "a network of width 0": changed(block_out_channels=[0, 0]),
    "a network too narrow for its norms": changed(block_out_channels=[2, 2], norm_num_groups=None),
    "a word for a number": changed(attn_norm_num_groups="many"),
    "a negative number of groups": changed(attn_norm_num_groups=-1),
    "too many classes": changed(num_class_embeds=10**12),
    "a number too large for a float": changed(norm_eps=10**400),
    "a class with a long name": changed(_class_name=LONG),
    "an embedding with a long name": changed(time_embedding_type=LONG),
    "a key with a newline": changed(**{"a\nb": 1}),
    "a value with a newline": changed(num_class_embeds="a\nb"),
    "many keys at their defaults": changed(
        _use_default_values=PARTS, **{str(i): 0 for i in range(50000)}
    ),
    "a scheduler of 1 GiB": sparse_config(SCHEDULER),
    "a scheduler nested a million deep": config("[" * 10**6, SCHEDULER),
    "a scheduler with a long class name": changed(SCHEDULER, _class_name=LONG),
    "a scheduler whose class is a list": changed(SCHEDULER, _class_name=PARTS),
    "a schedule with a long name": changed(SCHEDULER, beta_schedule=LONG),
    "a billion timesteps": changed(SCHEDULER, num_train_timesteps=10**9),
    "timesteps of many digits": changed(SCHEDULER, num_train_timesteps=10**4000),
    "a beta too large for a float": changed(SCHEDULER, beta_start=10**400),
    "a long list of betas": changed(SCHEDULER, trained_betas=[0.5] * 10**5),
    "a scheduler outside the folder": linked_config,
    "an index of 1 GiB": sparse_config(INDEX),
    "an index with a long class name": changed(
        INDEX, _class_name=LONG, vae=["diffusers", "VQModel"]
    ),
    "an index with a long part": changed(INDEX, unet=PARTS),
    "an index with many parts": changed(INDEX, **{str(i): ["a", "b"] for i in range(50000)}),
    "an index with a long scheduler name": changed(INDEX, scheduler=["diffusers", LONG]),
}

CAUSES = {
    "os.system": "asks for 'os.system'",
    "posix.system by protocol 4": "the instruction SHORT_BINUNICODE",
    "builtins.eval": "asks for 'builtins.eval'",
    "open a file": "asks for 'builtins.open'",
    "subprocess.Popen": "asks for 'subprocess.Popen'",
    "getattr of a module": "asks for 'builtins.getattr'",
    "a module imported": "asks for 'importlib.import_module'",
    "a class of another module": "asks for 'torch.nn.modules.linear.Linear'",
    "an array of NumPy": "asks for 'numpy",
    "an extension code": "the instruction EXT1",
    "a key that takes forever to hash": "a key that is not a short string",
    "the same key as an argument": "takes 1 positional argument",
    "a memo of a large number": "a memo of 2,147,483,647 entries",
    "two files with the same name": "two files with the same name",
    "one storage for many tensors": "more numbers in its tensors than in its storages",
    "a tensor with many axes": "with over 8 axes",
    "a compressed pickle": "compressed",
    "os.system in the older format": "asks for 'os.system'",
    "os.system as the older list of storages": "its list of storages has the instruction GLOBAL",
    "an older list with other storages": "its storages are not those of its tensors",
    "an older list with a storage too many": "its storages are not those of its tensors",
    "an older storage of another size": "a storage of another size than its tensors say",
    "an older storage larger than the file": "it ends before its last storage",
    "an older storage of negative size": "a storage of impossible size",
    "a part of an older storage": "a part of one",
    "an older storage of two types": "its storages are not those of its tensors",
    "a big-endian older file": "not written in little-endian byte order",
    "older settings of 3 MiB of dicts": "more than 131,072 instructions",
    "older pickles of 16 MiB": "more than 131,072 instructions",
    "truncated older storages": "it ends before its last storage",
    "a network too wide for memory": "block_out_channels",
    "a network of a billion layers": "layers_per_block",
    "a loop of links": "link",
    "a tensor of one repeated number": "reaches beyond its storage",
    "a storage that claims to be larger": "of another size",
    "a shard above the folder": "lies outside",
    "a shard by a link": "lies outside",
    "JSON of 1 GiB": "1,073,741,824 bytes",
    "integers": "of type I64",
    "a pickle of 16 MiB of dicts": "a pickle of 16,777,",
    "a pickle of 3 MiB of dicts": "more than 131,072 instructions",
    "a directory of 400 MB": "a directory of 419,430,400 bytes",
    "a zip64 directory of 400 MB": "a directory of 419,430,400 bytes",
    "a header of 16 MiB": "a header of",
    "JSON of 2 MiB, deep": "does not hold a JSON object",
    "a class with a long name": "a key or _class_name that is not a printable string",
    "an embedding with a long name": "time_embedding_type must be a printable string",
    "a schedule with a long name": "beta_schedule must be a printable string",
    "a scheduler of 1 GiB": "1,073,741,824 bytes",
    "a billion timesteps": "num_train_timesteps 1000000000 is not from 1 to",
    "a beta too large for a float": "beta_start must be a number",
    "a long list of betas": "trained_betas",
    "a scheduler outside the folder": "lies outside",
    "an index with a long scheduler name": "_class_name 'BBB",
}
"""Part of the message for a payload."""

HARMLESS = {"an object with attributes", "a pickle that leaves many values", "a header of 4 MiB"}
"""Read without an error, and then refused because the tensors do not match the network."""
