"""Out-of-memory errors are one line with the remedy; the host's available memory is known."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hosts import SHORT
from helpers.latent_runs import CONFIG as LATENT
from helpers.training import linear_batch, linear_loss, linear_params
from optax import sgd

from ddpm_jax.cli import train
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.devices import memory, parallel
from ddpm_jax.devices import platform as platforms
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.recipes.digits import config as digits
from ddpm_jax.runs import directory, loop
from ddpm_jax.training.step import init_state, make_train_step


def test_an_out_of_memory_error_is_one_line_with_the_remedy():
    causes = {
        r"device \(RESOURCE_EXHAUSTED: .*\)": lambda: jnp.zeros((2**40, 2**10)).block_until_ready(),
        r"host \(Unable to allocate .*\)": lambda: np.ones((2**40, 2**10)),
    }
    for where, allocate in causes.items():
        with (
            pytest.raises(
                ValueError, match=rf"^Out of memory on the {where} for 8 images: less\.$"
            ),
            memory.explain_oom("8 images", "less"),
        ):
            allocate()


def test_other_errors_pass_unchanged():
    with pytest.raises(ZeroDivisionError), memory.explain_oom("", ""):
        print(1 / 0)


def test_the_memory_of_a_step_is_at_least_its_output():
    """It is read from the compiled step. Here it is mostly the gradients, on each device."""
    step = parallel.jit_step(make_train_step(linear_loss, sgd(0.1)))
    state = parallel.put_state(init_state(linear_params(), sgd(0.1)))
    needed = step.host_memory(state, linear_batch())
    # 15 parameters have gradients of 4 bytes each.
    assert 15 * 4 <= needed < 2**20


def resident() -> int:
    """The resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can trim its heap")
def test_freed_memory_below_memory_in_use_is_returned():
    """Arrays below 128 KiB are in the heap, which the last one keeps from shrinking."""
    arrays = [np.ones(100_000, np.uint8) for _ in range(1000)]
    last = arrays.pop()
    arrays.clear()
    before = resident()
    memory.release()
    assert before - resident() > 50_000_000
    assert last.all()


FAULTS = """
import ctypes, resource, sys, threading
from ddpm_jax.devices import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = (ctypes.c_void_p,)
SIZE = 200 * 2**20
faults = []

def use(count):
    for _ in range(count):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array = libc.malloc(SIZE)
        libc.memset(array, 1, SIZE)
        libc.free(array)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "kept":
    memory.use_one_heap()
    memory.keep_freed()
thread = threading.Thread(target=use, args=(3,))
thread.start()
thread.join()
print(faults[-1])
"""
"""Fill 200 MiB three times in a thread, and print the page faults of the last time."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep its heap")
def test_kept_memory_is_not_cleared_again():
    command = [sys.executable, "-c", FAULTS]
    run = functools.partial(subprocess.run, capture_output=True, check=True, text=True)
    kept, returned = (int(run([*command, how]).stdout) for how in ("kept", "returned"))
    assert kept < 1000
    # Pages have 4 KiB, or 2 MiB where the system uses large ones for everything.
    assert returned >= 100
    assert kept < returned


RESERVED = """
import ctypes
from pathlib import Path
from ddpm_jax.devices import memory

def address_space():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[0])

memory.use_one_heap()
memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = address_space()
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(3 * 2**30))))
print((address_space() - before) / 2**30)
"""
"""Free 3 GiB that nothing has touched, and print what the address space has grown by, in GiB."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep its heap")
def test_more_than_2_gib_are_kept():
    command = [sys.executable, "-c", RESERVED]
    result = subprocess.run(command, capture_output=True, check=True, text=True)
    assert 2.99 < float(result.stdout) < 3.5


def test_threads_share_a_heap_before_jax_starts_them_if_only_the_cpu_can_be_used(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "use_one_heap", lambda: calls.append("heap"))

    def start(*_):
        calls.append("jax")
        raise ValueError("JAX would start.")

    monkeypatch.setattr(train.hosts, "distributed", start)
    for alone, expected in ((True, ["heap", "jax"]), (False, ["jax"])):
        monkeypatch.setattr(platforms, "will_use_cpu", lambda asked, alone=alone: alone)
        with pytest.raises(ValueError, match="JAX would start"):
            train.main(["--config", "digits"])
        assert calls == expected
        calls.clear()


def test_only_a_cpu_without_plugins_is_alone(monkeypatch):
    settings: dict[str, str | None] = {"jax_platforms": None}
    config = SimpleNamespace(values=settings)
    monkeypatch.setattr(platforms, "jax", SimpleNamespace(config=config))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for plugins in ((), ("cuda",)):
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group, plugins=plugins: plugins
        )
        assert platforms.will_use_cpu(None) == (not plugins)
        assert platforms.will_use_cpu("cpu")
        assert platforms.will_use_cpu("gpu") == (not plugins)
    settings["jax_platforms"] = "cpu"
    assert platforms.will_use_cpu(None)


def test_a_step_that_does_not_fit_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    monkeypatch.setattr(parallel.ParallelStep, "host_memory", lambda *_: 3 * 10**9)
    monkeypatch.setattr(parallel.ParallelStep, "__call__", lambda *_: pytest.fail("a step ran"))
    message = r"host \(3\.0 GB needed for a step, 1\.0 GB available\) for micro-batches of 8 "
    with pytest.raises(ValueError, match=message):
        loop.train(SHORT, tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


def test_every_step_fits_if_the_available_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check_fits(2**60)


def test_the_remedy_for_a_step_names_settings_of_the_recipe():
    workload, remedy = loop.memory_advice(dataclasses.replace(digits, training=SHORT.training), 0)
    assert workload == "micro-batches of 8 images of 8x8x1 in float32"
    assert "--training.accumulation (now 2), lower --training.batch-size (now 16)" in remedy
    settings = re.findall(r"--(\w+)\.([\w-]+)", remedy)
    assert len(settings) == 4
    for group, name in settings:
        assert name.replace("-", "_") in vars(getattr(digits, group))


def test_the_remedy_for_a_resumed_run_names_what_it_may_change():
    _, remedy = loop.memory_advice(digits, 100)
    settings = re.findall(r"--([\w.-]+)", remedy)
    assert settings
    assert all(name.startswith(directory.CHANGEABLE_SETTINGS) for name in settings)


def test_the_remedy_for_an_autoencoder_names_its_own_settings():
    _, remedy = loop.memory_advice(LATENT.autoencoder_config, 0)
    assert "lower --autoencoder.training.batch-size (now 8)" in remedy


def test_the_error_of_sampling_names_its_batch():
    model = ConvUNet(image_size=8, channels=3, widths=(8,))
    message = r"for batches of 9 images of 8x8x3 in float32: lower --batch-size\.$"
    with (
        pytest.raises(ValueError, match=message),
        BatchedRunOptions(batch_size=9).explain_oom(model),
    ):
        raise MemoryError


def write_files(tmp_path, **files):
    """Write files of these names and texts, with "/" for "__", and return the folder."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


MEMINFO = {
    "proc__meminfo": (
        "MemTotal: 900 kB\nMemAvailable:     700 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n"
    )
}


def test_available_memory_includes_swap(tmp_path):
    assert memory.available(tmp_path) is None
    assert memory.available(write_files(tmp_path, proc__meminfo="MemTotal: 900 kB\n")) is None
    assert memory.available(write_files(tmp_path, **MEMINFO)) == 800 * 1024


def test_the_tightest_control_group_limits_the_available_memory(tmp_path):
    groups = {
        "proc__self__cgroup": "4:memory:/old\n0::/job/step\n",
        "sys__fs__cgroup__job__memory.max": "500000\n",
        "sys__fs__cgroup__job__memory.current": "300000\n",
        "sys__fs__cgroup__job__memory.stat": "anon 1\ninactive_file 50000\nactive_file 7000\n",
        "sys__fs__cgroup__job__step__memory.max": "max\n",
    }
    assert memory.available(write_files(tmp_path, **MEMINFO, **groups)) == 257000


def test_this_machine_has_available_memory():
    free = memory.available()
    assert free is None or free > 2**20
