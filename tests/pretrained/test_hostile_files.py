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

MAX_GROWTH_MIB = 200

OPEN_ALL = """
import json, resource, sys
from pathlib import Path
from ddpm_jax.pretrained.pipeline_folder import load_pretrained

resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # seconds, for all folders together

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


def open_in_one_process(top, folders):
    """Open the folders. Return their [message, peak memory so far in MiB], and stderr."""
    command = [sys.executable, "-c", OPEN_ALL, *folders]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        command, cwd=top, env=environment, capture_output=True, text=True, timeout=600
    )
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{payload: (message, growth of peak memory in MiB)}, and the folder that holds all payloads.

    All are opened in one process, after one good model and before another.
    """
    top = tmp_path_factory.mktemp("hostile")
    for name in ("good", "good bin"):
        (top / name).mkdir()
        weights = fixture("ddpm", top / name)[2]
        (top / name / SCHEDULER).write_text("{}")
    (top / "good bin" / SAFETENSORS).unlink()
    save_bin(top / "good bin" / BIN, weights)
    shutil.copy(top / "good" / SAFETENSORS, top / "outside.safetensors")
    folders = {"good": "good"}
    for i, (payload, write) in enumerate(PAYLOADS.items()):
        folders[payload] = str(i)
        folder = shutil.copytree(top / "good", top / folders[payload])
        # A payload in a JSON file needs the good weights; any other replaces them.
        if "config" not in write.__qualname__ and "changed" not in write.__qualname__:
            (folder / SAFETENSORS).unlink()
        write(folder)
    folders["good bin"] = "good bin"
    results, errors = open_in_one_process(top, folders.values())
    assert len(results) == len(folders), f"stopped at {list(folders)[len(results)]}: {errors}"
    results = dict(zip(folders, results, strict=True))
    assert results.pop("good bin")[0] is None
    message, peak = results.pop("good")
    assert message is None
    return {payload: (message, after - peak) for payload, (message, after) in results.items()}, top


def fault(payload, message, growth):
    """Describe what is wrong with the result of a payload, or return None."""
    if message is None:
        return "it was read"
    if "\n" in message or len(message) >= 1000:
        return f"not one short line: {message[:1000]}"
    if ("the network that config.json describes" in message) != (payload in HARMLESS):
        return message
    if CAUSES.get(payload, "") not in message:
        return f"not {CAUSES[payload]!r}: {message}"
    if growth > MAX_GROWTH_MIB:
        return f"this payload or an earlier one took {growth:.0f} MiB"
    return None


def test_each_payload_ends_in_one_line_with_its_cause_and_takes_little_memory(opened):
    faults = {payload: fault(payload, *result) for payload, result in opened[0].items()}
    assert {payload: fault for payload, fault in faults.items() if fault} == {}
    assert CAUSES.keys() | HARMLESS <= PAYLOADS.keys()


def test_no_payload_runs_or_writes_anything(opened):
    files = {path.name for path in opened[1].iterdir()}
    payloads = map(str, range(len(PAYLOADS)))
    assert files == {"good", "good bin", "outside.safetensors", "outside", *payloads}


def write_short_storage(folder):
    """Write an archive whose directory claims 100 times as many bytes for a storage as it has."""
    large = Storage("0", NUMBERS.array, size=800)
    write_bin(folder / BIN, pickled({"conv_in.weight": tensor(large, (800,), (1,))}), [NUMBERS])
    data = (folder / BIN).read_bytes()
    # The storage is the last entry of the directory. An entry has 46 bytes before the file name,
    # and its two sizes are at byte 20 and 24.
    start = data.rindex(b"archive/data/0") - 46
    sizes = struct.pack("<II", 3200, 3200)
    (folder / BIN).write_bytes(data[: start + 20] + sizes + data[start + 28 :])


def test_a_storage_shorter_than_its_directory_entry_is_refused(tmp_path):
    write_short_storage(tmp_path)
    with pytest.raises(ValueError, match="is damaged at archive/data/0"):
        read_bin(tmp_path / BIN)["conv_in.weight"].read()
