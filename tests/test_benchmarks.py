"""What the benchmarks' own code says and calls; no test here measures a time."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
from helpers.training import CONV_UNET

from ddpm_jax.config import Config, Training
from ddpm_jax.data.digits import Digits

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
NEEDS_TORCH = {"torch_side"}
TINY = Config(
    model=CONV_UNET,
    data=Digits(),
    training=Training(batch_size=8, steps=1),
)


@pytest.fixture(autouse=True)
def find_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def test_every_benchmark_imports_what_is_there():
    for name in NAMES:
        if name not in NEEDS_TORCH:
            assert module(name).__doc__, name


def test_our_side_trains_passes_and_draws(monkeypatch):
    """Seconds are not looked at: the calls of the library are those that it has."""
    jax_side, gpu_side = module("jax_side"), module("gpu_side")
    monkeypatch.setattr(jax_side, "load_recipe", lambda name, folder: TINY)
    jax_side.load("tiny", 8)
    times = jax_side.train(1), jax_side.forward(1), gpu_side.sample(2, 8)
    assert min(times) > 0
    assert gpu_side.flops() > 0


class HereSide:
    """A side of this process, which knows its device alone."""

    def __init__(self, *process):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, function):
        return getattr(module("gpu_side" if function == "device" else "jax_side"), function)()


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "Side", HereSide)
    gpu.main(argparse.Namespace(platform="gpu"))
    printed = capsys.readouterr().out
    assert printed.startswith("no gpu is here: JAX runs on cpu")
    assert printed.count("\n") == 1


def test_the_peak_is_known_by_the_device_or_given():
    peak_of = module("gpu").peak_of
    assert peak_of("NVIDIA H100 80GB HBM3", None) == peak_of("NVIDIA H200", None) == 989
    assert peak_of("NVIDIA A100-SXM4-40GB", None) == 312
    assert peak_of("NVIDIA H100 PCIe", None) == 756
    assert peak_of("NVIDIA H200", 800) == peak_of("something else", 800) == 800
    with pytest.raises(SystemExit, match="--peak-tflops"):
        peak_of("something else", None)


def test_a_ratio_is_the_median_of_pairs_that_take_turns():
    asked, times = [], {"a": iter([9.0, 2.0, 6.0, 4.0]), "b": iter([9.0, 1.0, 2.0, 2.0])}

    def work(name):
        asked.append(name)
        return next(times[name])

    found = module("sides").ratio(lambda: work("a"), lambda: work("b"), 3)
    assert found == (2.0, 2.0, 3.0, (4.0, 2.0))
    assert "".join(asked) == "ab" + "ab" + "ba" + "ab"
    assert str(found) == "2.000 (2.000 to 3.000)"


def test_a_side_does_what_it_is_asked_and_says_when_it_is_gone(tmp_path):
    script = tmp_path / "side.py"
    words = "import os\nfrom sides import serve\ndef add(a, b=1):\n    print('aside')\n    return a + b\n"
    script.write_text(words + "serve({'add': add, 'leave': lambda: os._exit(1)})\n")
    with module("sides").Side(sys.executable, str(script), {"PYTHONPATH": str(FOLDER)}) as side:
        assert side.ask("add", 2) == 3
        assert side.ask("add", 2, b=2) == 4
        with pytest.raises(RuntimeError, match="while it did leave"):
            side.ask("leave")


@pytest.mark.parametrize(
    ("sign", "reached"), [(">=", ["no", "yes", "yes"]), ("<=", ["yes", "yes", "no"])]
)
def test_a_row_says_whether_its_goal_was_reached(sign, reached):
    rows = module("rows")
    lines = [
        str(rows.Row("what", "net", value, rows.Goal(sign, 2), "how", " s"))
        for value in (1.0, 2.0, 3.0)
    ]
    assert lines == [
        f"| what | net | {value} s | {sign} 2 s | {answer} | how |"
        for value, answer in zip("123", reached, strict=True)
    ]


def test_the_nets_of_the_table_are_recipes():
    assert all(
        (FOLDER.parent / "configs" / f"{net.recipe}.py").exists() for net in module("rows").NETS
    )
