"""Output that cannot be written is dropped: real pipes and descriptors, in this process."""

import os
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from ddpm_jax.cli.console import lenient_output, occupy_standard_descriptors


def unread_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full_disk():
    return open("/dev/full", "w")


def closed_stream():
    with open(os.devnull, "w") as stream:
        return stream


def talk():
    """Print, log an epoch and show a progress bar, as training does."""
    print("a line", flush=True)
    print("another", file=sys.stderr, flush=True)
    with tqdm(total=2) as bar:
        bar.write("an epoch")
        bar.update(2)
    sys.stdout.write("x" * 100_000)


@pytest.mark.parametrize("make", [unread_pipe, full_disk, closed_stream, lambda: None])
def test_output_that_cannot_be_written_raises_nothing(monkeypatch, make):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make())
    streams = sys.stdout, sys.stderr
    with lenient_output():
        talk()
    assert (sys.stdout, sys.stderr) == streams
    for stream in streams:
        if stream is not None and not stream.closed:
            # Python flushes at its exit, and would exit with status 120 if that failed.
            stream.flush()
            stream.close()


def test_a_character_outside_the_encoding_is_escaped(monkeypatch, tmp_path):
    path = tmp_path / "printed"
    with path.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lenient_output():
            print("rün")
    assert path.read_text() == "r\\xfcn\n"


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_no_file_gets_the_number_of_a_closed_standard_stream(tmp_path, descriptor):
    """Otherwise XLA's messages to stderr would be written into a checkpoint."""
    saved = os.dup(descriptor)
    os.close(descriptor)
    try:
        occupy_standard_descriptors()
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        with (tmp_path / "checkpoint").open("w") as file:
            number = file.fileno()
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
    assert Path(target) == Path(os.devnull)
    assert number > 2
