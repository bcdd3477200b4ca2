"""Hostile files end in one line, run nothing, write nothing and take little memory."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
from helpers.hostile import BIN, CAUSES, HARMLESS, NUMBERS, PAYLOADS, ROOT, SAFETENSORS, SCHEDULER
from helpers.pretrained import Storage, fixture, pickled, save_bin, tensor, write_bin

from ddpm_jax.pretrained.torch_pickle import read_bin

MOST_MIB = 200

OPEN_ALL = """
import json, resource, sys
from pathlib import Path
from ddpm_jax.pretrained.pipeline_folder import load_pretrained

resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # of all together, in seconds

def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    status = Path("/proc/self/status").read_text()  # on Linux, ru_maxrss counts the parent too
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10

for folder in sys.argv[1:]:
    try:
        load_pretrained(folder)
        message = None
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    except BaseException as error:
        message = f"TRACEBACK {type(error).__name__}\\n{error}"
    print(json.dumps([message, peak()]), flush=True)
"""


def in_one_process(top, folders):
    """[message, peak of memory so far in MiB] of each folder."""
    command = [sys.executable, "-c", OPEN_ALL, *folders]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=top, env=environment, capture_output=True, text=True, timeout=600
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{payload: (message, growth of the peak in MiB)}, and the directory in which all were opened.

    All are opened in one process, after a good model and before another.
    """
    top = tmp_path_factory.mktemp("hostile")
    for name in ("good", "good bin"):
        (top / name).mkdir()
        weights = fixture("ddpm", top / name)[2]
        (top / name / SCHEDULER).write_text("{}")
    (top / "good bin" / SAFETENSORS).unlink()
    save_bin(top / "good bin" / BIN, weights)
    shutil.copy(top / "good" / SAFETENSORS, top / "outside.safetensors")
    folders = (
        {"good": "good"}
        | {payload: str(i) for i, payload in enumerate(PAYLOADS)}
        | {"good bin": "good bin"}
    )
    for payload, make in PAYLOADS.items():
        folder = shutil.copytree(top / "good", top / folders[payload])
        if "config" not in make.__qualname__ and "changed" not in make.__qualname__:
            (folder / SAFETENSORS).unlink()
        make(folder)
    found, errors = in_one_process(top, folders.values())
    assert len(found) == len(folders), f"stopped at {list(folders)[len(found)]}: {errors}"
    messages = dict(zip(folders, found, strict=True))
    assert messages.pop("good bin")[0] is None
    message, peak = messages.pop("good")
    assert message is None
    return {payload: (message, after - peak) for payload, (message, after) in messages.items()}, top


def fault(payload, message, growth):
    if message is None:
        return "it was read"
    if "\n" in message or len(message) >= 1000:
        return f"not one short line: {message[:1000]}"
    if ("the net that config.json describes" in message) != (payload in HARMLESS):
        return message
    if CAUSES.get(payload, "") not in message:
        return f"not {CAUSES[payload]!r}: {message}"
    return f"or one before took {growth:.0f} MiB" if growth > MOST_MIB else None


def test_each_ends_in_one_line_that_names_the_cause_and_takes_little_memory(opened):
    faults = {payload: fault(payload, *found) for payload, found in opened[0].items()}
    assert {payload: fault for payload, fault in faults.items() if fault} == {}
    assert CAUSES.keys() | HARMLESS <= PAYLOADS.keys()


def test_nothing_ran_and_nothing_was_written(opened):
    files = {path.name for path in opened[1].iterdir()}
    assert files == {
        "good",
        "good bin",
        "outside.safetensors",
        "outside",
        *map(str, range(len(PAYLOADS))),
    }


def shorter(folder):
    """The directory of the archive says that the storage has 100 times as many bytes as there are."""
    large = Storage("0", NUMBERS.array, count=800)
    write_bin(folder / BIN, pickled({"conv_in.weight": tensor(large, (800,), (1,))}), [NUMBERS])
    data = (folder / BIN).read_bytes()
    at = (
        data.rindex(b"archive/data/0") - 46
    )  # the last entry of the directory; its sizes are at 20 and 24
    sizes = struct.pack("<II", 3200, 3200)
    (folder / BIN).write_bytes(data[: at + 20] + sizes + data[at + 28 :])


def test_a_storage_shorter_than_its_entry_says_is_not_read_beyond(tmp_path):
    shorter(tmp_path)
    with pytest.raises(ValueError, match="is damaged at archive/data/0"):
        read_bin(tmp_path / BIN)["conv_in.weight"].read()
