"""Bytes that collectives send and the rates of links, as benchmarks/links.py takes them."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def add_benchmarks_to_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def collective(operation, groups):
    """A collective kernel with a result of 32 bytes."""
    attributes = f"channel_id=1, {groups}, to_apply=%sum"
    return module("hlo").Kernel("collective", 64, 1, "forward psum", operation, 32, attributes)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups={}", list(range(16))),
        ("replica_groups=[2,8]<=[16]", list(range(8))),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", [0, 8]),
        ("replica_groups=mesh['a'=2,'b'=8] {'b'}", list(range(8))),
        ("replica_groups=mesh['a'=2,'b'=8] {'a'}", [0, 8]),
        ("replica_groups=mesh['a'=2,'b'=8] {'a','b'}", list(range(16))),
        ("replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'a'}", list(range(8))),
        ("replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'b'}", [0, 8]),
        ("replica_groups=mesh['a'=8,'b'=2], device_ids=([16]) {'b'}", [0, 1]),
        ("source_target_pairs={{3,4},{4,5}}", [3, 4]),
    ],
)
def test_the_chips_of_a_collective_are_those_of_its_group(groups, expected):
    assert module("links").first_group(groups, 16) == expected


@pytest.mark.parametrize("groups", ["replica_groups=mesh['a'=16] {'a':(1)2}", "channel_id=1"])
def test_groups_that_cannot_be_read_are_refused(groups):
    with pytest.raises(ValueError, match="Cannot read the groups of a collective: teach links"):
        module("links").first_group(groups, 16)


def test_a_ring_over_a_group_sends_its_parts():
    """A ring over 8 chips sends 7/8 of an array; the result of a reduce-scatter is 1/8 of one."""
    sent = {
        operation: module("links").bytes_sent(
            collective(operation, "replica_groups=[2,8]<=[16]"), 16
        )
        for operation in ("all-reduce", "all-gather", "reduce-scatter")
    }
    assert sent == {
        "all-reduce": 2 * 7 / 8 * 32,
        "all-gather": 7 / 8 * 32,
        "reduce-scatter": 7 * 32,
    }
    pairs = collective("collective-permute", "source_target_pairs={{0,1},{1,2}}")
    assert module("links").bytes_sent(pairs, 16) == 32
    assert module("links").bytes_sent(pairs._replace(kind="copy"), 16) == 0


@pytest.mark.parametrize(
    ("chip", "shape", "group", "rate"),
    [
        ("h100", "1x8", range(8), 450),
        ("h100", "2x8", range(8), 450),
        # Two chips use their own adapters, and sixteen the eight of each machine.
        ("h100", "2x8", (0, 8), 50),
        ("h100", "2x8", range(16), 400),
        # A chip in a square of four has two of its four links, and in 2x2x1 two of six.
        ("v5e", "2x2", range(4), 100),
        ("v5p", "2x2x1", range(4), 200),
        ("v5e", "16x16", range(256), 200),
    ],
)
def test_a_chip_sends_at_the_rate_of_the_links_that_its_group_uses(chip, shape, group, rate):
    links = module("links")
    known = module("chip_kinds").CHIPS[chip]
    assert links.rate(known, shape, list(group)) == rate
    kernel = collective("all-gather", f"replica_groups={{{{{','.join(map(str, group))}}}}}")
    parts = (len(group) - 1) / len(group)
    assert links.seconds_sending(kernel, known, shape) == pytest.approx(parts * 32 / rate / 1e9)
