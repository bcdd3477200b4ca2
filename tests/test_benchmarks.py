"""The benchmarks' own code. No test here measures a time."""

import argparse
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from helpers.training import CONV_UNET

from ddpm_jax.config import Config, Training, config_to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.runs.checkpoints import CheckpointWriter

pytestmark = pytest.mark.runs

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
NEED_OTHER_PACKAGES = {"torch_side", "torch_twin", "torch_process", "dew_side"}
TINY = Config(
    model=CONV_UNET,
    data=Digits(),
    training=Training(batch_size=8, steps=1),
)


@pytest.fixture(autouse=True)
def add_benchmarks_to_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def test_every_benchmark_can_be_imported():
    for name in NAMES:
        if name not in NEED_OTHER_PACKAGES:
            assert module(name).__doc__, name


@pytest.mark.usefixtures("without_kernels")
def test_our_side_trains_and_samples(monkeypatch):
    jax_side = module("jax_side")
    gpu_side = module("gpu_side")
    monkeypatch.setattr(jax_side, "load_recipe", lambda name: TINY)
    jax_side.load("tiny", 8)
    times = jax_side.train(1), jax_side.forward(1), gpu_side.sample(2, 8)
    assert min(times) > 0
    assert gpu_side.flops() > 0
    assert min(gpu_side.work()) > 0


class LocalSide:
    """A side that runs in this process."""

    def __init__(self, *process):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, function):
        return getattr(module("gpu_side" if function == "device" else "jax_side"), function)()


def test_the_gpu_benchmark_without_a_gpu_prints_one_line(monkeypatch, capsys):
    gpu = module("gpu")
    monkeypatch.setattr(gpu, "Side", LocalSide)
    gpu.main(argparse.Namespace(platform="gpu"))
    printed = capsys.readouterr().out
    assert printed.startswith("No gpu found, nothing measured: JAX runs on cpu")
    assert printed.count("\n") == 1


class FakeGpu:
    """Both sides on a GPU, where our work takes half the time of PyTorch's."""

    def __init__(self, python, script, env=None):
        self.seconds = 1.0 if script == module("rows").TORCH else 0.5

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, function, *args, **options):
        answers = {
            "device": ("gpu", "NVIDIA H200", "CUDA 12"),
            "versions": {"jax": "0"},
            "flops": 1e9,
            "work": (7, 48e9),
        }
        return answers.get(function, self.seconds)


def test_the_rows_of_the_gpu_benchmark_come_by_weight(monkeypatch, capsys):
    """Ten steps take 0.5 s, so one takes 50 ms, and its 48 GB take an H200 10 ms."""
    gpu = module("gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(gpu, "Side", FakeGpu)
    marks = {"imported": 1.0, "first step done": 2.0}
    monkeypatch.setattr(gpu, "first_steps", lambda *_: [marks, marks])
    options = {"platform": "gpu", "recipe": "tiny", "batch_sizes": [128, 1024], "pairs": 1}
    options |= {"torch_python": "python", "torch_mode": "default", "kind": None, "out": None}
    gpu.main(argparse.Namespace(**options))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[5:]]
    assert [row[0].removeprefix("| ") for row in rows] == [
        "speed relative to PyTorch: training step of 128 images",
        "MFU: training step of 128 images",
        "time relative to its estimate: training step of 128 images",
        "speed relative to PyTorch: training step of 1024 images",
        "MFU: training step of 1024 images",
        "time relative to its estimate: training step of 1024 images",
        "speed relative to PyTorch: 50 DDIM steps of 128 images",
        "MFU: 50 DDIM steps of 128 images",
        "time from start to end of first step of 128 images, compilation cache empty",
        "time from start to end of first step of 128 images, compilation cache filled",
        "time of a deterministic training step of 128 images, relative to the usual one",
        "speed relative to PyTorch: 1000 DDPM steps of 128 images",
        "MFU: 1000 DDPM steps of 128 images",
    ]
    assert rows[0][2] == "2.000 (2.000 to 2.000)"
    assert rows[2][2] == "5"
    assert "50.00 ms against 10.00 ms; 7 kernels, 48.0 GB" in rows[2][-1]
    # The processes inherit it, so that both sides use one GPU.
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(
    ("device", "peak", "bandwidth", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 3350, 80),
        ("NVIDIA H100 PCIe", 756, 2000, 80),
        ("NVIDIA H200", 989, 4800, 141),
        ("NVIDIA A100-SXM4-80GB", 312, 2039, 80),
        ("NVIDIA A100-SXM4-40GB", 312, 1555, 40),
        ("h100", 989, 3350, 80),
    ],
)
def test_the_rates_follow_from_the_name_of_the_device(device, peak, bandwidth, memory):
    chip = module("chip_kinds").chip_of(device)
    assert (chip.peak, chip.bandwidth, chip.memory) == (peak, bandwidth, memory)


@pytest.mark.parametrize(
    "device", ["NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA A100 80GB PCIe"]
)
def test_the_rates_of_a_device_with_a_similar_name_are_unknown(device):
    with pytest.raises(SystemExit, match=r"add it to benchmarks/chip_kinds\.py\.$"):
        module("chip_kinds").chip_of(device)


def test_a_step_sends_gradients_in_a_ring_and_takes_three_forward_passes():
    """Two chips send the 4 MB of a million gradients once, in 4 ms at 1 GB/s."""
    cell = module("scaling").cell(2, peak=1.0, link=1.0, parameters=1_000_000, flops=1e8)
    # At 40% of 1 TFLOP/s, an image takes 0.75 ms.
    assert cell == "4.00 ms, 6"


def test_a_ratio_is_the_median_of_pairs_that_take_turns():
    calls = []
    times = {"a": iter([9.0, 2.0, 6.0, 4.0]), "b": iter([9.0, 1.0, 2.0, 2.0])}

    def work(name):
        calls.append(name)
        return next(times[name])

    result = module("sides").ratio(lambda: work("a"), lambda: work("b"), 3)
    assert result == (2.0, 2.0, 3.0, (4.0, 2.0))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert str(result) == "2.000 (2.000 to 3.000)"


SIDE_SCRIPT = """
import os
from sides import serve

def add(a, b=1):
    print("aside")
    return a + b

serve({"add": add, "leave": lambda: os._exit(1)})
"""


def test_a_side_answers_and_its_end_is_an_error(tmp_path):
    script = tmp_path / "side.py"
    script.write_text(SIDE_SCRIPT)
    with module("sides").Side(sys.executable, str(script), {"PYTHONPATH": str(FOLDER)}) as side:
        assert side.ask("add", 2) == 3
        assert side.ask("add", 2, b=2) == 4
        with pytest.raises(RuntimeError, match="ended during leave"):
            side.ask("leave")


@pytest.mark.parametrize(
    ("sign", "expected"), [(">=", ["no", "yes", "yes"]), ("<=", ["yes", "yes", "no"])]
)
def test_a_row_states_whether_its_goal_is_met(sign, expected):
    rows = module("rows")
    lines = [
        str(rows.Row("speed", "net", value, rows.Goal(sign, 2), "details", " s"))
        for value in (1.0, 2.0, 3.0)
    ]
    assert lines == [
        f"| speed | net | {value} s | {sign} 2 s | {met} | details |"
        for value, met in zip("123", expected, strict=True)
    ]


def test_the_nets_of_the_table_are_recipes():
    configs = FOLDER.parent / "configs"
    assert all((configs / f"{net.recipe}.py").exists() for net in module("rows").NETS)


@pytest.fixture
def torch_twin(monkeypatch):
    """The twin's module, imported without PyTorch."""
    for name in ("torch", "torch.nn", "diffusers"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    yield module("torch_twin")
    del sys.modules["torch_twin"]


def test_the_twin_refuses_settings_that_it_does_not_have(torch_twin):
    torch_twin.check_recipe(TINY)
    weighted = dataclasses.replace(TINY.objective, target="v", weighting="min_snr")
    half = dataclasses.replace(TINY.training, dtype="float16")
    recipe = dataclasses.replace(TINY, objective=weighted, training=half)
    message = r"does not have the recipe's objective\.weighting, training\.dtype: give another run"
    with pytest.raises(ValueError, match=message):
        torch_twin.check_recipe(recipe)


def test_the_curve_of_a_recipe_is_that_of_a_run_with_its_settings(tmp_path):
    benchmark = module("loss_curve")
    with CheckpointWriter(tmp_path) as writer:
        writer.save(1, {"params": {"w": np.zeros(1)}}, config_to_json(TINY))
    lines = [json.dumps({"step": i, "loss_bands": [1.0 + i] * 8}) for i in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "curves" / "tiny.json"
    other = dataclasses.replace(TINY, training=Training(batch_size=4, steps=1))
    with pytest.raises(
        ValueError, match=r"recipe in training\.batch_size: give a run of the recipe"
    ):
        benchmark.save_curve(str(tmp_path), other, path)
    assert not path.exists()
    reseeded = dataclasses.replace(TINY, training=Training(batch_size=8, steps=1, seed=3))
    assert benchmark.save_curve(str(tmp_path), reseeded, path).ends.tolist() == [10]
    assert json.loads(path.read_text())["records"] == [[10] * 8]
