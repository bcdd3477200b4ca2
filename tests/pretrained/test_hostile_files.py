"""Files that mean harm: nothing runs, nothing outside the folder is read, no memory is taken, one line says why.

All are opened by one other process, whose peak of memory is set back before each; where the system cannot do that, by
one process each.
"""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hostile import BIN, HARMLESS, NUMBERS, PAYLOADS, ROOT, SAFETENSORS, SCHEDULER
from helpers.pretrained import Storage, fixture, pickled, tensor, write_bin

from ddpm_jax.pretrained.torch_pickle import read_bin

MOST_MIB = 200

CLEAR = Path("/proc/self/clear_refs")

OPEN_ALL = """
import json, re, resource, sys
from pathlib import Path
from ddpm_jax.pretrained.folders import load_pretrained

def peak():
    if sys.argv[1] == "once":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10

def set_back():
    if sys.argv[1] != "once":
        Path("/proc/self/clear_refs").write_text("5")

load_pretrained(sys.argv[2])
set_back()
before = peak()
for folder in sys.argv[3:]:
    set_back()
    try:
        load_pretrained(folder)
        message = None
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}\\n{error}"
    print(json.dumps([message, peak() - before]), flush=True)
"""


def peaks_can_be_set_back():
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def model(folder):
    """A whole model of diffusers, all in one folder."""
    folder.mkdir()
    fixture("ddpm", folder)
    (folder / SCHEDULER).write_text("{}")
    return folder


def opened_by_another(top, good, folders):
    """[message, growth in MiB] of each folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    once = not peaks_can_be_set_back()
    found = []
    for some in [[folder] for folder in folders] if once else [folders]:
        command = [sys.executable, "-c", OPEN_ALL, "once" if once else "all", str(good), *some]
        done = subprocess.run(command, cwd=top, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found += map(json.loads, io.StringIO(done.stdout))
    return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{payload: (message, growth in MiB)}, and the directory in which all were opened."""
    top = tmp_path_factory.mktemp("hostile")
    good = model(top / "good")
    shutil.copy(good / SAFETENSORS, top / "outside.safetensors")
    folders = []
    for i, make in enumerate(PAYLOADS.values()):
        folder = model(top / str(i))
        if "config" not in make.__qualname__ and "changed" not in make.__qualname__:
            (folder / SAFETENSORS).unlink()
        make(folder)
        folders.append(str(folder))
    return dict(zip(PAYLOADS, opened_by_another(top, good, folders), strict=True)), top


@pytest.mark.parametrize("payload", PAYLOADS)
def test_harm_ends_in_one_line(payload, opened):
    message, growth = opened[0][payload]
    assert message is not None, "it was taken"
    assert "\n" not in message
    assert len(message) < 1000
    assert growth < MOST_MIB
    assert ("the net that config.json describes" in message) == (payload in HARMLESS)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("os.system", "asks for 'os.system'"),
        ("posix.system by protocol 4", "the instruction STACK_GLOBAL"),
        ("builtins.eval", "asks for 'builtins.eval'"),
        ("open a file", "asks for 'builtins.open'"),
        ("subprocess.Popen", "asks for 'subprocess.Popen'"),
        ("getattr of a module", "asks for 'builtins.getattr'"),
        ("a module imported", "asks for 'importlib.import_module'"),
        ("a class of another module", "asks for 'torch.nn.modules.linear.Linear'"),
        ("an array of NumPy", "asks for 'numpy"),
        ("an extension code", "the instruction EXT1"),
        ("a key that takes for ever to hash", "by name alone"),
        ("two files of one name", "two files of one name"),
        ("one storage for many tensors", "more numbers in its tensors than it holds"),
        ("a tensor of many axes", "without storage, shape or strides"),
        ("a compressed pickle", "compressed"),
        ("a net too wide to hold", "block_out_channels"),
        ("a net of a billion layers", "layers_per_block"),
        ("a loop of links", "link"),
        ("a tensor of one number repeated", "reaches beyond its storage"),
        ("a storage said to be larger", "of another size"),
        ("a shard above", "lies outside"),
        ("a shard by a link", "lies outside"),
        ("JSON of 1 GB", "1,073,741,824 bytes"),
        ("whole numbers", "of type I64"),
        ("a pickle of 16 MiB of dicts", "a pickle of 16,777,"),
        ("a pickle of 3 MiB of dicts", "more than 131,072 instructions"),
        ("a pickle that leaves many values", "leaves 65536 values"),
        ("a directory of 400 MB", "a directory of 419,430,400 bytes"),
        ("a directory of 400 MB by zip64", "a directory of 419,430,400 bytes"),
        ("a header of 16 MiB", "a header of"),
        ("JSON of 2 MiB, deep", "does not hold a JSON object"),
        ("a class of a long name", "a _class_name that no model has"),
        ("an embedding of a long name", "time_embedding_type 'BBB"),
        ("a schedule of a long name", "beta_schedule 'BBB"),
        ("a scheduler of 1 GB", "1,073,741,824 bytes"),
        ("a billion timesteps", "num_train_timesteps 1000000000 is not within"),
        ("a noise that is no float", "beta_start must be a number"),
        ("betas of many entries", "trained_betas"),
        ("a scheduler outside", "lies outside"),
        ("an index that names a class of a long name", "_class_name 'BBB"),
    ],
)
def test_the_line_says_what_is_wrong(payload, words, opened):
    assert words in opened[0][payload][0]


def test_nothing_ran_and_nothing_was_written(opened):
    files = {path.name for path in opened[1].iterdir()}
    assert files == {"good", "outside.safetensors", "outside", *map(str, range(len(PAYLOADS)))}


def shorter(folder):
    """The directory of the archive says that the storage has 100 times as many bytes as there are."""
    large = Storage("0", NUMBERS.array, count=800)
    write_bin(folder / BIN, pickled({"conv_in.weight": tensor(large, (800,), (1,))}), [NUMBERS])
    data = (folder / BIN).read_bytes()
    at = data.rindex(b"archive/data/0") - 46  # the last entry of the directory; its sizes are at 20 and 24
    sizes = struct.pack("<II", 3200, 3200)
    (folder / BIN).write_bytes(data[: at + 20] + sizes + data[at + 28 :])


def test_a_storage_shorter_than_its_entry_says_is_not_read_beyond(tmp_path):
    shorter(tmp_path)
    with pytest.raises(ValueError, match="is damaged at archive/data/0"):
        read_bin(tmp_path / BIN)["conv_in.weight"].read()
