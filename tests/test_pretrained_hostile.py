"""Files that mean harm: nothing runs, nothing outside the folder is read, no memory is taken, one line says why.

All are opened by one other process, which notes how far its memory has grown.
"""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from example_hostile import BIN, HARMLESS, PAYLOADS, ROOT, SAFETENSORS, shorter
from example_pretrained import fixture

from ddpm_jax.pretrained.unpickle import read_bin

MOST_MIB = 200

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
    ],
)
def test_the_line_says_what_is_wrong(payload, words, opened):
    assert words in opened[0][payload][0]


def test_nothing_ran_and_nothing_was_written(opened):
    files = {path.name for path in opened[1].iterdir()}
    assert files == {"good", "outside.safetensors", *map(str, range(len(PAYLOADS)))}


def test_a_storage_shorter_than_its_entry_says_is_not_read_beyond(tmp_path):
    shorter(tmp_path)
    with pytest.raises(ValueError, match="is damaged at archive/data/0"):
        read_bin(tmp_path / BIN)["conv_in.weight"].read()
