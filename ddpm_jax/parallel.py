"""Devices: the only file that knows how many there are.

A training step is written once, for one device or for one share of the batch (`axis_name`). Here it is spread over
the local devices by `jax.pmap`, or by `jax.jit` with a sharded batch; both leave the state unstacked, so that a
checkpoint does not depend on the route or on the number of devices.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_mesh() -> Mesh:
    """All local devices along one axis, over which batches are split."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def replicate(tree: Any) -> Any:
    """`tree` whole on every local device, ready to be donated; arrays that are there already are not copied."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def like_replicated(shapes: Any) -> Any:
    """The shapes of arrays, to be restored whole on every local device."""
    whole = NamedSharding(data_mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def shard(tree: Any) -> Any:
    """`tree` with the first axis of every array split over the local devices."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec(AXIS)))


@functools.cache
def by_device(function: Callable) -> Callable:
    """`function(tree, *arrays, **arrays)` of arrays split over the local devices, each at work on its share alone.

    For a function that treats each example by itself, so that the compiler need not find out how to split it. The
    same function gives the same object, as `jit` needs it.
    """

    def of_share(tree, arrays, named):
        return function(tree, *arrays, **named)

    def split(tree, *arrays, **named):
        whole, share = PartitionSpec(), PartitionSpec(AXIS)
        specs = {"in_specs": (whole, share, share), "out_specs": share}
        return jax.shard_map(of_share, mesh=data_mesh(), check_vma=False, **specs)(tree, arrays, named)

    return split


def even_batch(batch_size: int, num: int) -> int:
    """The size of the batches in which to work on `num` examples: at most num, then up to what the devices divide."""
    count = jax.local_device_count()
    return -(-min(batch_size, num) // count) * count


def check_divides(batch_size: int) -> None:
    """Raises ValueError unless the local devices divide the batch."""
    count = jax.local_device_count()
    if batch_size % count:
        nearest = max(batch_size // count, 1) * count
        raise ValueError(
            f"a batch of {batch_size} does not divide over {count} devices: "
            f"use a multiple of {count}, such as {nearest} or {nearest + count}"
        )


def pmap_step(step: Callable) -> Callable:
    """`step(state, batch)` on every local device, a share of the batch each; the state is donated.

    `jax.pmap` has been `jit` of `shard_map` since JAX 0.8; with `None` axes the state stays unstacked.
    """
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)

    def run(state, batch):
        count = jax.local_device_count()
        return mapped(state, jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch))

    return run


def jit_step(step: Callable) -> Callable:
    """`step(state, batch)` on global arrays, the batch sharded: XLA inserts the collectives; the state is donated."""
    whole, split = (NamedSharding(data_mesh(), spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))
    return jax.jit(step, in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0)


def spread(make_step: Callable[[str | None], Callable], route: str) -> Callable:
    """The training step of `make_step(axis_name)` over all local devices, by the route "pmap" or "jit"."""
    return pmap_step(make_step(AXIS)) if route == "pmap" else jit_step(make_step(None))


def use_cpu_cores(batch_size: int, wanted: int | None = None, cores_each: int = 1) -> int | None:
    """The number of virtual devices that the CPU is split into, so that every core is used; None if left alone.

    `wanted`, or the largest number that divides the batch and leaves `cores_each` to each device. Does nothing where
    the user has chosen by JAX_NUM_CPU_DEVICES or XLA_FLAGS. To be called before the first use of a device, by scripts.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(min(cores // cores_each, batch_size), 1)
    count = wanted or next(n for n in range(most, 0, -1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", count)
    return count


def require_platform(platform: str) -> None:
    """Sees to it that JAX uses "cpu", "gpu" or "tpu"; raises ValueError if there is none."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != platform:
        remedy = f"install the JAX for it (such as 'ddpm_jax[{platform}]') or leave --platform out to use what there is"
        raise ValueError(f"no {platform} was found by JAX: {remedy}")


def describe_devices() -> str:
    """Such as "2 x cpu"."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind}"
