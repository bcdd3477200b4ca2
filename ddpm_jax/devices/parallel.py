"""Devices: the only file that knows how many there are.

A training step is written once, for one device or for one share of the batch (`axis_name`). Here it is spread over
the devices by `jax.pmap`, or by `jax.jit` with a sharded batch; both leave the state unstacked, so that a
checkpoint does not depend on the route or on the number of devices. Training uses the devices of all hosts, sampling
those of one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import check

AXIS, FSDP = "data", "fsdp"
MIN_SHARDED_SIZE = 1024
"""Elements below which an array of the state is not worth splitting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the step is spread over devices and hosts; every way gives the same numbers to rounding."""

    route: Literal["pmap", "jit"] = "pmap"
    """Each device works on its share of the batch, or XLA is told how the arrays are split."""
    fsdp: int = 1
    """Devices over which parameters, averages and optimizer state are split; above 1 by the jit route."""
    cpu_devices: int | None = None
    """Virtual CPU devices of a host; None for the largest number that divides the batch, as many as its cores."""

    @property
    def description(self) -> str:
        """Such as "pmap", or "jit, state over 4 devices"."""
        return self.route if self.fsdp == 1 else f"jit, state over {self.fsdp} devices"

    def __post_init__(self):
        for name in ("fsdp", "cpu_devices"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"parallel.{name} must be at least 1, not {value}")


def data_mesh() -> Mesh:
    """The local devices along one axis, over which batches of samples are split."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def training_mesh(fsdp: int = 1) -> Mesh:
    """The devices of all hosts, those of each host side by side, as (data,) or (data, fsdp): batches split over both.

    Raises ValueError unless fsdp divides the number of devices.
    """
    devices = np.asarray(
        sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    )
    if len(devices) % fsdp:
        raise ValueError(
            f"{len(devices)} devices do not divide into groups of {fsdp}: change --parallel.fsdp"
        )
    return Mesh(devices, (AXIS,)) if fsdp == 1 else Mesh(devices.reshape(-1, fsdp), (AXIS, FSDP))


def state_shardings(tree: Any, fsdp: int = 1) -> Any:
    """How each array of a state lies on the training mesh: split over `fsdp` devices along its longest axis that
    they divide, or whole on each.
    """
    mesh = training_mesh(fsdp)

    def share(x: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % fsdp == 0]
        if fsdp == 1 or math.prod(x.shape) < MIN_SHARDED_SIZE or not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(
            mesh, PartitionSpec(*(FSDP if axis == longest else None for axis in range(x.ndim)))
        )

    return jax.tree.map(share, tree)


def put_state(tree: Any, fsdp: int = 1) -> Any:
    """A state on the training mesh as `shares` says, ready to be donated; arrays that lie so already are not copied.

    On several hosts each gives the same values.
    """

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or getattr(x, "sharding", None) == sharding:
            return jax.device_put(x, sharding)
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree, state_shardings(tree, fsdp))


def state_template(shapes: Any, fsdp: int = 1) -> Any:
    """The shapes of a state's arrays, to be restored as `shares` says."""
    split = state_shardings(shapes, fsdp)
    return jax.tree.map(
        lambda x, share: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=share), shapes, split
    )


def gather_to_host(tree: Any) -> Any:
    """A part of the state whole on this host, to sample from; where it is split, all hosts must ask for it together."""
    if any(not x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = _gather(NamedSharding(jax.tree.leaves(tree)[0].sharding.mesh, PartitionSpec()))(tree)
    return tree if jax.process_count() == 1 else jax.tree.map(lambda x: x.addressable_data(0), tree)


@functools.cache
def _gather(whole: NamedSharding) -> Callable:
    return jax.jit(lambda tree: tree, out_shardings=whole)


def replicate(tree: Any) -> Any:
    """`tree` whole on every local device, ready to be donated; arrays that are there already are not copied."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def replicated_template(shapes: Any) -> Any:
    """The shapes of arrays, to be restored whole on every local device."""
    whole = NamedSharding(data_mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def shard(tree: Any) -> Any:
    """`tree` with the first axis of every array split over the local devices."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec(AXIS)))


@functools.cache
def per_shard(function: Callable) -> Callable:
    """`function(tree, *arrays)` of arrays split over the local devices, each at work on its share alone.

    For a function that treats each example by itself, so that the compiler need not find out how to split it. The
    same function gives the same object, as `jit` needs it.
    """

    def of_share(tree, arrays):
        return function(tree, *arrays)

    def split(tree, *arrays):
        whole, share = PartitionSpec(), PartitionSpec(AXIS)
        specs = {"in_specs": (whole, share), "out_specs": share}
        return jax.shard_map(of_share, mesh=data_mesh(), check_vma=False, **specs)(tree, arrays)

    return split


def padded_batch_size(batch_size: int, num: int) -> int:
    """The size of the batches in which to work on `num` examples: at most num, then up to what the devices divide."""
    count = jax.local_device_count()
    return -(-min(batch_size, num) // count) * count


def check_divides(batch_size: int, fsdp: int = 1) -> None:
    """Raises ValueError unless the devices of all hosts divide the batch of a training step, and fsdp divides them."""
    count = training_mesh(fsdp).size
    if batch_size % count:
        nearest = max(batch_size // count, 1) * count
        raise ValueError(
            f"a batch of {batch_size} does not divide over {count} devices: "
            f"use a multiple of {count}, such as {nearest} or {nearest + count}"
        )


def rows_of_host(batch_size: int, accumulation: int = 1) -> np.ndarray:
    """The rows of a global batch that this host reads: its share of each micro-batch, one after the other."""
    rows = np.arange(batch_size).reshape(accumulation, jax.process_count(), -1)
    return rows[:, jax.process_index()].ravel()


@dataclasses.dataclass(frozen=True)
class ParallelStep:
    """A training step over the devices, `mapped(state, shard_batch(batch))`, of this host's rows; the state is donated."""

    mapped: Any
    shard_batch: Callable

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        return self.mapped(state, self.shard_batch(batch))

    def host_memory(self, state: Any, batch: Any) -> int:
        """Bytes of the host's memory that a step takes beside state and batch: 0 but on CPU devices.

        What is compiled for this is there for the calls to come.
        """
        if jax.default_backend() != "cpu":
            return 0
        needed = self.mapped.lower(state, self.shard_batch(batch)).compile().memory_analysis()
        each = needed.temp_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes
        return each * jax.local_device_count()


def pmap_step(step: Callable) -> ParallelStep:
    """`step(state, batch)` on every device, a share of the batch each.

    `jax.pmap` has been `jit` of `shard_map` since JAX 0.8; with `None` axes the state stays unstacked. On several
    hosts it would take the arrays apart and put them together at every step, and its two parts are used by themselves.
    """
    if jax.process_count() > 1:
        mesh, whole, share = training_mesh(), PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(whole, share), out_specs=whole, check_vma=False
        )
        shard_batch = functools.partial(_of_all_hosts, NamedSharding(mesh, share))
        return ParallelStep(jax.jit(mapped, donate_argnums=0), shard_batch)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)
    return ParallelStep(mapped, functools.partial(_by_device, jax.local_device_count()))


def jit_step(step: Callable, fsdp: int = 1) -> ParallelStep:
    """`step(state, batch)` on global arrays, the batch sharded: XLA inserts the collectives.

    With fsdp above 1 a step begins by gathering the parameters, and each device keeps and updates its share alone.
    """
    mesh = training_mesh(fsdp)
    whole, split = (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
    )

    def of_shares(state, batch):
        state = state._replace(params=jax.lax.with_sharding_constraint(state.params, whole))
        state, metrics = step(state, batch)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, fsdp)), metrics

    of_all, lie = (step, whole) if fsdp == 1 else (of_shares, None)
    mapped = jax.jit(of_all, out_shardings=lie, donate_argnums=0)
    return ParallelStep(mapped, functools.partial(_of_all_hosts, split))


def _by_device(count: int, batch: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def _of_all_hosts(sharding: NamedSharding, batch: Any) -> Any:
    """The global arrays of which each host has its rows."""

    def put(x: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def parallelize(
    make_step: Callable[[str | None], Callable], route: str, fsdp: int = 1
) -> ParallelStep:
    """The training step of `make_step(axis_name)` over all devices, by the route "pmap" or "jit"; split state by jit.

    It takes the state as `place` leaves it, and the rows of this host.
    """
    return (
        pmap_step(make_step(AXIS))
        if route == "pmap" and fsdp == 1
        else jit_step(make_step(None), fsdp)
    )


def describe_devices() -> str:
    """Such as "2 x cpu", or on several hosts "4 hosts with 8 x TPU v5 lite"."""
    devices, hosts = jax.local_devices(), jax.process_count()
    return f"{f'{hosts} hosts with ' if hosts > 1 else ''}{len(devices)} x {devices[0].device_kind}"
