"""Virtual CPU devices, platforms and the same bits each time are as asked for, in processes of their own."""

import pytest
from helpers.fresh_python import in_a_process

from ddpm_jax.devices import platform as platforms


def test_cpu_cores_are_the_largest_divisor_of_the_batch():
    code = (
        "for batch in (128, 9, 7, 1, 13, 24): print(platforms.use_cpu_cores(batch))\n"
        "for batch in (128, 9, 1): print(platforms.use_cpu_cores(batch, cores_each=2))\n"
        "print(platforms.use_cpu_cores(128, cores_each=24))\n"
        "print(platforms.use_cpu_cores(128, 4), parallel.describe_devices())"
    )
    assert in_a_process(code) == ["8", "9", "7", "1", "1", "12", "4", "3", "1", "1", "4 4 x cpu"]


def test_a_deterministic_run_says_so_to_xla_and_keeps_what_the_user_said():
    code = "platforms.be_deterministic(); print(os.environ['XLA_FLAGS']); print(jax.numpy.ones(2).sum())"
    flags, total = in_a_process(code, XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    assert flags == f"--xla_cpu_enable_fast_math=false {platforms.DETERMINISTIC}"
    assert total == "2.0"  # XLA ends a process at a flag that it does not know


@pytest.mark.parametrize(
    "environment", [{"JAX_NUM_CPU_DEVICES": "3"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}], ids=str
)
def test_cpu_cores_are_left_alone_where_the_user_has_chosen(environment):
    code = "print(platforms.use_cpu_cores(128), parallel.describe_devices())"
    assert in_a_process(code, **environment) == ["None 3 x cpu"]


def test_a_platform_that_is_not_there_is_one_line():
    code = (
        "try:\n    platforms.require_platform('gpu')\n    print('found', jax.local_devices()[0].platform)\n"
        "except ValueError as error:\n    print(error)"
    )
    (line,) = in_a_process(code, JAX_PLATFORMS="")
    assert line == "found gpu" or line.startswith("no gpu was found by JAX: install")


def test_a_platform_that_is_there_is_used():
    code = "platforms.require_platform('cpu'); print(parallel.describe_devices())"
    assert in_a_process(code, JAX_PLATFORMS="") == ["1 x cpu"]
