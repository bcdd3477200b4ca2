"""Virtual CPU devices, platforms and deterministic bits are set as asked for."""

import os

import jax
import pytest
from helpers.fresh_python import in_a_process

from ddpm_jax.devices import platform


@pytest.fixture
def updates(monkeypatch):
    """What JAX was told, on a machine of 12 cores whose user has chosen nothing."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def test_cpu_devices_are_the_largest_divisor_of_the_batch(updates):
    cases = {(128, 1): 8, (9, 1): 9, (7, 1): 7, (1, 1): 1, (13, 1): 1, (24, 1): 12}
    cases |= {(128, 2): 4, (9, 2): 3, (1, 2): 1, (128, 24): 1}
    for (batch, cores_per_device), count in cases.items():
        assert platform.use_cpu_cores(batch, cores_per_device=cores_per_device) == count, (
            batch,
            cores_per_device,
        )
        assert updates == {"jax_num_cpu_devices": count}
    assert platform.use_cpu_cores(128, wanted=5) == 5
    assert updates == {"jax_num_cpu_devices": 5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_NUM_CPU_DEVICES", "3"), ("XLA_FLAGS", "--xla_force_host_platform_device_count=3")],
)
def test_cpu_devices_chosen_by_the_user_are_left_alone(updates, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert platform.use_cpu_cores(128) is None
    assert not updates


def test_jax_takes_the_devices_and_the_deterministic_flags():
    """XLA ends a process at a flag that it does not know. Flags of the user are kept."""
    code = (
        "print(platforms.use_cpu_cores(128, 4)); platforms.be_deterministic()\n"
        "platforms.require_platform('cpu')\n"
        "print(os.environ['XLA_FLAGS'])\n"
        "print(jax.numpy.ones(2).sum(), parallel.describe_devices())"
    )
    own = "--xla_cpu_enable_fast_math=false"
    count, flags, used = in_a_process(code, JAX_PLATFORMS="", XLA_FLAGS=own)
    assert count == "4"
    assert flags == f"{own} {platform.DETERMINISTIC}"
    assert used == "2.0 4 x cpu"


def test_a_missing_platform_is_refused(updates, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(ValueError, match=r"no gpu was found by JAX: install .*'ddpm_jax\[gpu\]'"):
        platform.require_platform("gpu")
    assert not updates
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    platform.require_platform("gpu")
    platform.require_platform("cpu")
    assert updates == {"jax_platforms": "cpu"}
