"""What JAX is told before its first use of a device, by the scripts: which kind, in how many, with which bits."""

import os

import jax


def use_cpu_cores(
    batch_size: int, wanted: int | None = None, cores_per_device: int = 1
) -> int | None:
    """The number of virtual devices that the CPU is split into, so that every core is used; None if left alone.

    `wanted`, or the largest number that divides the batch and leaves `cores_per_device` to each device. Does nothing where
    the user has chosen by JAX_NUM_CPU_DEVICES or XLA_FLAGS. To be called before the first use of a device, by scripts.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        return None
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    most = max(min(cores // cores_per_device, batch_size), 1)
    count = wanted or next(n for n in range(most, 0, -1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", count)
    return count


DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def set_deterministic() -> None:
    """Has a GPU give the same bits each time: no atomic sums, and kernels that are not chosen by their speed that day.

    A CPU does so anyway. To be called before the first use of a device.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()


def require_platform(platform: str) -> None:
    """Sees to it that JAX uses "cpu", "gpu" or "tpu"; raises ValueError if there is none."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != platform:
        remedy = f"install the JAX for it (such as 'ddpm_jax[{platform}]') or leave --platform out to use what there is"
        raise ValueError(f"no {platform} was found by JAX: {remedy}")
