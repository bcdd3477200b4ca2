"""Settings of virtual CPU devices, platforms and deterministic bits."""

import os

import jax
import pytest
from helpers.fresh_python import in_a_process

from ddpm_jax.devices import platform


@pytest.fixture
def updates(monkeypatch):
    """The settings made of JAX, on a machine with 12 cores whose user has set nothing."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    return settings


def test_the_number_of_cpu_devices_is_the_largest_divisor_of_the_batch(updates):
    cases = {(128, 1): 8, (9, 1): 9, (7, 1): 7, (1, 1): 1, (13, 1): 1, (24, 1): 12}
    cases |= {(128, 2): 4, (9, 2): 3, (1, 2): 1, (128, 24): 1}
    for (batch, cores), expected in cases.items():
        number = platform.use_cpu_cores(batch, cores_per_device=cores)
        assert number == expected, (batch, cores)
        assert updates == {"jax_num_cpu_devices": expected}
    assert platform.use_cpu_cores(128, num_devices=5) == 5
    assert updates == {"jax_num_cpu_devices": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")],
)
def test_cpu_devices_set_by_the_user_are_kept(updates, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert platform.use_cpu_cores(128) is None
    assert not updates


def test_jax_accepts_the_devices_and_the_flags():
    """XLA aborts the process at an unknown flag. The user's own flags are kept."""
    code = (
        "print(platforms.use_cpu_cores(128, 4)); platforms.order_for_memory()\n"
        "platforms.set_deterministic()\n"
        "platforms.require_platform('cpu')\n"
        "print(os.environ['XLA_FLAGS'])\n"
        "print(jax.numpy.ones(2).sum(), parallel.describe_devices())"
    )
    own = "--xla_cpu_enable_fast_math=false"
    number, flags, result = in_a_process(code, JAX_PLATFORMS="", XLA_FLAGS=own)
    assert number == "4"
    order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    assert flags == f"{own} {order} {platform.DETERMINISTIC}"
    assert result == "2.0 4 x cpu"


def test_the_user_can_choose_the_order_of_operations(monkeypatch):
    own = "--xla_cpu_enable_concurrency_optimized_scheduler=true"
    monkeypatch.setenv("XLA_FLAGS", own)
    platform.order_for_memory()
    assert os.environ["XLA_FLAGS"] == own


def test_an_absent_device_and_disabled_compilation_are_named():
    code = (
        "import sys; from ddpm_jax.cli import arguments\n"
        "sys.stderr = sys.stdout\n"
        "try:\n"
        "    arguments.set_up_jax(4, None, cache=False)\n"
        "except ValueError as error:\n"
        "    print(error)"
    )
    slow, absent = in_a_process(code, JAX_PLATFORMS="cuda", JAX_DISABLE_JIT="1")
    assert slow.startswith("JAX_DISABLE_JIT is set, so nothing is compiled")
    assert absent.startswith("JAX finds no device (")
    assert "unset JAX_PLATFORMS, which is cuda" in absent


def test_a_missing_platform_is_refused(updates, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(ValueError, match=r"JAX uses no gpu: install .*'ddpm_jax\[gpu\]'"):
        platform.require_platform("gpu")
    assert not updates
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,cuda")
    with pytest.raises(ValueError, match=r"JAX uses no gpu \(JAX_PLATFORMS is cpu,cuda\): install"):
        platform.require_platform("gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    platform.require_platform("gpu")
    platform.require_platform("cpu")
    assert updates == {"jax_platforms": "cpu"}
