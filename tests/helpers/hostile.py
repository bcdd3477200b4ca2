"""Files that mean harm, each made in a folder that holds a net of diffusers otherwise."""

import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
from helpers.pretrained import Call, Global, Storage, pickled, tensor, write_bin

ROOT = Path(__file__).parents[2]
SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
NUMBERS = Storage("0", np.zeros(8, np.float32))


def calls(name, text):
    """A pickle that calls module.name(text), in the oldest protocol."""
    return f"c{name}\n(V{text}\ntR.".encode()


def bin_of(data, storages=(NUMBERS,), **options):
    return lambda folder: write_bin(folder / BIN, data, storages, **options)


def state(value):
    return bin_of(pickled(OrderedDict({"conv_in.weight": value})))


def twice(name):
    """An archive with one more pickle, of this name."""

    def made(folder):
        write_bin(folder / BIN, pickled({}))
        with warnings.catch_warnings(), zipfile.ZipFile(folder / BIN, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(name, pickled({}))

    return made


def loop(folder):
    (folder / SAFETENSORS).symlink_to(folder / f"{SAFETENSORS}.index.json")
    (folder / f"{SAFETENSORS}.index.json").symlink_to(folder / SAFETENSORS)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")


HASH_BOMB = b")" + b"q\x00h\x00\x86" * 60
"""A pair of a pair of a pair ..., each of the same thing twice: its hash takes 2^60 steps."""


def directory(claimed, whole64=False):
    """An archive of holes whose end record claims a directory of so many bytes."""

    def made(folder):
        with open(folder / BIN, "wb") as file:
            file.truncate(claimed)
            file.seek(0, 2)
            if whole64:
                record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, claimed, 0)
                locator = struct.pack("<IQI", 0, claimed, 1)
                file.write(b"PK\x06\x06" + record + b"PK\x06\x07" + locator)
            size = 2**32 - 1 if whole64 else claimed
            file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0))

    return made


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


def many_tensors(count):
    """A genuine header of so many empty tensors."""
    each = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return lambda folder: header(b"{" + b",".join(each % i for i in range(count)) + b"}", data=b"")(
        folder
    )


def part(dtype="F32", shape=(8,), start=0, end=32):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def index(shard, weights="conv_in.weight"):
    text = json.dumps({"weight_map": {weights: shard}})
    return lambda folder: (folder / f"{SAFETENSORS}.index.json").write_text(text)


def linked(folder):
    (folder / "shard.safetensors").symlink_to(folder.parent / "outside.safetensors")
    index("shard.safetensors")(folder)


def one_shard_by_many_names(folder):
    header({"a": part()}, data=b"\0" * 32)(folder)
    (folder / SAFETENSORS).rename(folder / "shard")
    places = {str(i): "./" * i + "shard" for i in range(100)}
    (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps({"weight_map": places}))


def config(text, name=CONFIG):
    return lambda folder: (folder / name).write_text(text)


def sparse_config(name):
    def made_config(folder):
        with open(folder / name, "wb") as file:
            file.truncate(2**30)

    return made_config


def changed(name=CONFIG, **settings):
    def made(folder):
        said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(said | settings))

    return made


def repeated(text, size):
    """A JSON list of about so many bytes."""
    return config("[" + ",".join([text] * (size // (len(text) + 1))) + "]")


def linked_config(folder):
    """The folder of the scheduler is a link to one outside."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / SCHEDULER).write_text("{}")
    (folder / "scheduler").symlink_to(outside)


DEEP, LONG, PARTS = "[" * 900 + "]" * 900, "B" * 10**6, ["diffusers"] * 10**5

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
    "a storage said to be larger": state(
        tensor(Storage("0", NUMBERS.array, count=10**9), (8,), (1,))
    ),
    "a storage of whole numbers": state(
        tensor(Storage("0", NUMBERS.array, kind="LongStorage"), (8,), (1,))
    ),
    "a tensor beyond its storage": state(tensor(NUMBERS, (8,), (1,), offset=4)),
    "a tensor before its storage": state(tensor(NUMBERS, (4,), (-1,), offset=3)),
    "a tensor of one number repeated": state(tensor(NUMBERS, (10**10,), (0,))),
    "one storage for many tensors": bin_of(
        pickled({str(i): tensor(NUMBERS, (8,), (1,)) for i in range(9)})
    ),
    "a tensor of many axes": state(tensor(NUMBERS, (1,) * 40000, (1,) * 40000)),
    "a key that takes for ever to hash": bin_of(b"\x80\x02}" + HASH_BOMB + b"K\x01s."),
    "the same key in an argument": bin_of(
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
    "two files of one name": twice("archive/data.pkl"),
    "a loop of links": loop,
    "a compressed pickle": lambda folder: bin_of(
        bytes(16 * 2**20), compression=zipfile.ZIP_DEFLATED
    )(folder),
    "a pickle cut short": bin_of(pickled({"conv_in.weight": tensor(NUMBERS, (8,), (1,))})[:-10]),
    "an archive cut short": cut(BIN, bin_of(pickled({}))),
    "no archive": lambda folder: (folder / BIN).write_bytes(pickle.dumps({})),
    "two pickles": twice("other/data.pkl"),
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
    "a pickle of 16 MiB of dicts": bin_of(b"}" * 2**24 + b"."),
    "a pickle of 3 MiB of dicts": bin_of(b"}" * (3 * 2**20) + b"."),
    "a pickle that leaves many values": bin_of(b"}" * 2**16 + b"."),
    "a directory of 400 MB": directory(400 * 2**20),
    "a directory of 400 MB by zip64": directory(400 * 2**20, whole64=True),
    "a header of 16 MiB": many_tensors(300_000),
    "a header of 4 MiB": many_tensors(72_000),
    "one shard by many names": one_shard_by_many_names,
    "a shard of a long name": index("a" * 10**4),
    "a tensor whose name is two lines": header({"a\nb": part()}, data=b"\0" * 32),
    "JSON of 1 GB": sparse_config(CONFIG),
    "JSON of 8 MiB": repeated(DEEP, 2**23),
    "JSON of 2 MiB, deep": repeated(DEEP, 2**21),
    "JSON of 2 MiB, flat": repeated("[[]]", 2**21),
    "JSON a million deep": config("[" * 10**6),
    "JSON that is no object": config("[1]"),
    "JSON of bytes": config("\0\1\2"),
    "a net too wide to hold": changed(block_out_channels=[2**20, 2**20]),
    "a net of a billion layers": changed(layers_per_block=10**9),
    "a net of no width": changed(block_out_channels=[0, 0]),
    "a net too narrow for its norms": changed(block_out_channels=[2, 2], norm_num_groups=None),
    "words for numbers": changed(attn_norm_num_groups="many"),
    "groups below none": changed(attn_norm_num_groups=-1),
    "more classes than a number holds": changed(num_class_embeds=10**12),
    "a number that is no float": changed(norm_eps=10**400),
    "a class of a long name": changed(_class_name=LONG),
    "an embedding of a long name": changed(time_embedding_type=LONG),
    "a key of two lines": changed(**{"a\nb": 1}),
    "a word of two lines": changed(num_class_embeds="a\nb"),
    "many keys at their defaults": changed(
        _use_default_values=PARTS, **{str(i): 0 for i in range(50000)}
    ),
    "a scheduler of 1 GB": sparse_config(SCHEDULER),
    "a scheduler a million deep": config("[" * 10**6, SCHEDULER),
    "a scheduler of a long class": changed(SCHEDULER, _class_name=LONG),
    "a scheduler of a class that is a list": changed(SCHEDULER, _class_name=PARTS),
    "a schedule of a long name": changed(SCHEDULER, beta_schedule=LONG),
    "a billion timesteps": changed(SCHEDULER, num_train_timesteps=10**9),
    "timesteps of many digits": changed(SCHEDULER, num_train_timesteps=10**4000),
    "a noise that is no float": changed(SCHEDULER, beta_start=10**400),
    "betas of many entries": changed(SCHEDULER, trained_betas=[0.5] * 10**5),
    "a scheduler outside": linked_config,
    "an index of 1 GB": sparse_config(INDEX),
    "an index of a long class": changed(INDEX, _class_name=LONG, vae=["diffusers", "VQModel"]),
    "an index with a part of many entries": changed(INDEX, unet=PARTS),
    "an index of many parts": changed(INDEX, **{str(i): ["a", "b"] for i in range(50000)}),
    "an index that names a class of a long name": changed(INDEX, scheduler=["diffusers", LONG]),
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
    "a key that takes for ever to hash": "by name alone",
    "the same key in an argument": "takes 1 positional argument",
    "a memo of a large number": "a memo of 2,147,483,647 entries",
    "two files of one name": "two files of one name",
    "one storage for many tensors": "more numbers in its tensors than it holds",
    "a tensor of many axes": "of over 8 axes",
    "a compressed pickle": "compressed",
    "a net too wide to hold": "block_out_channels",
    "a net of a billion layers": "layers_per_block",
    "a loop of links": "link",
    "a tensor of one number repeated": "reaches beyond its storage",
    "a storage said to be larger": "of another size",
    "a shard above": "lies outside",
    "a shard by a link": "lies outside",
    "JSON of 1 GB": "1,073,741,824 bytes",
    "whole numbers": "of type I64",
    "a pickle of 16 MiB of dicts": "a pickle of 16,777,",
    "a pickle of 3 MiB of dicts": "more than 131,072 instructions",
    "a directory of 400 MB": "a directory of 419,430,400 bytes",
    "a directory of 400 MB by zip64": "a directory of 419,430,400 bytes",
    "a header of 16 MiB": "a header of",
    "JSON of 2 MiB, deep": "does not hold a JSON object",
    "a class of a long name": "a _class_name that no model has",
    "an embedding of a long name": "time_embedding_type 'BBB",
    "a schedule of a long name": "beta_schedule 'BBB",
    "a scheduler of 1 GB": "1,073,741,824 bytes",
    "a billion timesteps": "num_train_timesteps 1000000000 is not within",
    "a noise that is no float": "beta_start must be a number",
    "betas of many entries": "trained_betas",
    "a scheduler outside": "lies outside",
    "an index that names a class of a long name": "_class_name 'BBB",
}
"""What the message of a payload says."""

HARMLESS = {"an object with attributes", "a pickle that leaves many values", "a header of 4 MiB"}
"""Read without complaint, and then refused because the tensors are not those of the net."""
