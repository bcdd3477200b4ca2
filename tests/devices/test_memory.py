"""Memory that does not suffice is said in one line with what to change; what this machine has left is known."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import TINY, fails, train_main

from ddpm_jax.cli.run_options import InBatches
from ddpm_jax.devices import memory
from ddpm_jax.devices.parallel import SpreadStep
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.runs import loop
from ddpm_jax.runs import steps as saved_steps


def test_a_device_without_room_is_one_line_that_names_the_settings():
    with (
        pytest.raises(ValueError, match=r"^out of memory on the device \(RESOURCE_EXHAUSTED: .*\): 8 pictures: fewer$"),
        memory.shortage_named("8 pictures", "fewer"),
    ):
        jnp.zeros((2**40, 2**10)).block_until_ready()


def test_so_is_a_host_without_room():
    with (
        pytest.raises(ValueError, match=r"^out of memory on the host \(Unable to allocate .*\): 8 pictures: fewer$"),
        memory.shortage_named("8 pictures", "fewer"),
    ):
        np.ones((2**40, 2**10))


def test_other_errors_are_left_alone():
    with pytest.raises(ZeroDivisionError), memory.shortage_named("", ""):
        print(1 / 0)


def test_a_step_that_does_not_fit_is_refused_before_it_is_taken(capsys, tmp_path, monkeypatch):
    """The estimate is that of the compiled step; what this machine has left is made small."""
    monkeypatch.setattr(memory, "available", lambda: 1000)
    monkeypatch.setattr(SpreadStep, "__call__", lambda *_: pytest.fail("a step was taken"))
    message = fails(capsys, train_main, *TINY, "--training.steps", 4, "--workdir", tmp_path / "run")
    needed = re.search(r"out of memory on the host \((\d+\.\d) GB needed for a step, 0\.0 GB available\)", message)
    assert needed, message
    for named in ("micro-batches of 8 pictures of 8x8x1 in float32", "--training.accumulation (now 2)", "(now 16)"):
        assert named in message
    assert saved_steps.steps(tmp_path / "run") == []


def test_sampling_names_its_batch():
    model = ConvUNet(image_size=8, channels=3, widths=(8,))
    with (
        pytest.raises(ValueError, match=r": batches of 9 pictures of 8x8x3 in float32: lower --batch-size$"),
        InBatches(batch_size=9).shortage_named(model),
    ):
        jnp.zeros((2**40, 2**10)).block_until_ready()


def folder_of(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


MEMINFO = {"proc__meminfo": "MemTotal: 900 kB\nMemAvailable:     700 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n"}


def test_what_is_free_is_memory_and_swap(tmp_path):
    assert memory.available(tmp_path) is None
    assert memory.available(folder_of(tmp_path, proc__meminfo="MemTotal: 900 kB\n")) is None
    assert memory.available(folder_of(tmp_path, **MEMINFO)) == 800 * 1024


def test_the_narrowest_control_group_counts(tmp_path):
    groups = {
        "proc__self__cgroup": "4:memory:/old\n0::/job/step\n",
        "sys__fs__cgroup__job__memory.max": "500000\n",
        "sys__fs__cgroup__job__memory.current": "300000\n",
        "sys__fs__cgroup__job__memory.stat": "anon 1\ninactive_file 50000\nactive_file 7000\n",
        "sys__fs__cgroup__job__step__memory.max": "max\n",
    }
    assert memory.available(folder_of(tmp_path, **MEMINFO, **groups)) == 257000


def test_this_machine_has_some_left():
    free = memory.available()
    assert free is None or free > 2**20


def test_every_setting_named_is_one():
    config = loop.Config.__dataclass_fields__
    what, remedy = loop.needs(train.command_line.load_recipe("digits", train.CONFIGS))
    assert "8x8x1" in what
    for group, name in re.findall(r"--(\w+)\.([\w-]+)", remedy):
        assert name.replace("-", "_") in config[group].type.__dataclass_fields__
