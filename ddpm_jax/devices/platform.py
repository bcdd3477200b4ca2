"""Configure JAX before its first use of a device. Only scripts call these functions."""

import importlib.metadata
import importlib.util
import os
import sys

import jax

from ddpm_jax.errors import one_line


def use_cpu_cores(
    batch_size: int, num_devices: int | None = None, cores_per_device: int = 1
) -> int | None:
    """Split the CPU into virtual devices, and return their number.

    The number is `num_devices`, or by default the largest divisor of the batch size that leaves
    `cores_per_device` cores to each device. If the user set a number by JAX_NUM_CPU_DEVICES or
    XLA_FLAGS, change nothing and return None.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return None
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    maximum = max(min(cores // cores_per_device, batch_size), 1)
    divisors = (n for n in range(maximum, 0, -1) if batch_size % n == 0)
    number = num_devices or next(divisors)
    jax.config.update("jax_num_cpu_devices", number)
    return number


MEMORY_ORDER = "xla_cpu_enable_concurrency_optimized_scheduler"


def order_for_memory() -> None:
    """Make XLA order the operations of a CPU's program so that it needs little memory.

    XLA's default order lets more operations run at the same time. With one or two cores per device
    this gains nothing (benchmarks/memory_order.py), and a step needs more memory
    (benchmarks/memory.py). If the user set this flag in XLA_FLAGS, change nothing.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if MEMORY_ORDER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{MEMORY_ORDER}=false".strip()


DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def set_deterministic() -> None:
    """Make a GPU give the same bits in every process; a CPU does so anyway.

    This rules out atomic sums and autotuned kernels.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def will_use_cpu(platform: str | None) -> bool:
    """Whether JAX will use the CPU: it was asked to, or no plugin for another device is installed.

    This starts no device.
    """
    asked = {platform, jax.config.values["jax_platforms"]}
    if "cpu" in asked:
        return True
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    modules = [importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")]
    return not plugins and not any(modules)


def require_platform(platform: str) -> None:
    """Make JAX use "cpu"; for "gpu" and "tpu", raise ValueError if that is not what it uses."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    check_devices()
    if jax.default_backend() != platform:
        names = os.environ.get("JAX_PLATFORMS")
        cause = f" (JAX_PLATFORMS is {names})" if names else ""
        raise ValueError(
            f"JAX uses no {platform}{cause}: install JAX for it, such as 'ddpm_jax[{platform}]', "
            "or omit --platform to use the default device."
        )


def warn_of_slow_settings() -> None:
    """Warn on stderr of a setting that makes every program slow."""
    if jax.config.values["jax_disable_jit"]:
        print(
            "JAX_DISABLE_JIT is set, so nothing is compiled and a step may take minutes: unset it.",
            file=sys.stderr,
        )


def check_devices() -> None:
    """Raise ValueError if JAX finds no device, or not the one that JAX_PLATFORMS names."""
    try:
        jax.devices()
    # JAX asserts that a backend was found.
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error).rstrip(".") or "no backend could be initialized"
        names = os.environ.get("JAX_PLATFORMS")
        unset = f"unset JAX_PLATFORMS, which is {names}, or " if names else ""
        raise ValueError(
            f"JAX finds no device ({reason}): {unset}install JAX for the device."
        ) from error
