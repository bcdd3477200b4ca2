"""Run training steps and sampling on all devices: the only file that splits a batch over them.

A training step is written once, for one device or for one shard of the batch (`axis_name`). Here it
is mapped over the devices by `jax.pmap`, or by `jax.jit` with a sharded batch. Both routes leave
the state unstacked, so a checkpoint depends neither on the route nor on the number of devices.
Training uses the devices of all hosts, sampling those of one host.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import check_at_least, check_choice, check_settings, check_whole

AXIS = "data"
FSDP = "fsdp"
MIN_SHARDED_SIZE = 1024
"""Arrays of the state with fewer elements than this are replicated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a training step uses devices and hosts. No choice changes results beyond rounding."""

    route: Literal["pmap", "jit"] = "pmap"
    """pmap runs the step on a shard of the batch per device; jit lets XLA partition the step."""
    fsdp: int = 1
    """Devices to split parameters, averages and optimizer state over. Above 1 the route is jit."""
    cpu_devices: int | None = None
    """Virtual CPU devices per host; None for the number of the run that is resumed, one on several
    hosts, and else a divisor of the micro-batch, at most one per core."""

    @property
    def description(self) -> str:
        """A description such as "pmap" or "jit, state over 4 devices"."""
        return self.route if self.fsdp == 1 else f"jit, state over {self.fsdp} devices"

    def __post_init__(self):
        check_settings(self, "parallel.")
        check_at_least(1, **{"parallel.fsdp": self.fsdp, "parallel.cpu_devices": self.cpu_devices})


def data_mesh() -> Mesh:
    """The local devices along one axis, over which batches of samples are split."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,))


def training_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices of all hosts, or the given ones, as a mesh with axes (data,) or (data, fsdp).

    The devices of a host are adjacent. A batch is split over all axes. Raise ValueError unless
    fsdp divides the number of devices.
    """
    found = devices or jax.devices()
    ordered = np.asarray(sorted(found, key=lambda device: (device.process_index, device.id)))
    if len(ordered) % fsdp:
        raise ValueError(
            f"{len(ordered)} devices do not divide into groups of {fsdp}: change --parallel.fsdp."
        )
    if fsdp == 1:
        return Mesh(ordered, (AXIS,))
    return Mesh(ordered.reshape(-1, fsdp), (AXIS, FSDP))


def state_shardings(tree: Any, fsdp: int = 1, mesh: Mesh | None = None) -> Any:
    """The sharding of each array of a state on the training mesh, or on another one of fsdp.

    An array is split over `fsdp` devices along its longest axis that fsdp divides. Arrays without
    such an axis, or smaller than MIN_SHARDED_SIZE, are replicated.
    """
    mesh = mesh or training_mesh(fsdp)

    def sharding_for(x: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(x.shape) if length % fsdp == 0]
        if fsdp == 1 or math.prod(x.shape) < MIN_SHARDED_SIZE or not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, FSDP))  # as JAX writes it

    return jax.tree.map(sharding_for, tree)


def put_state(tree: Any, fsdp: int = 1) -> Any:
    """Put a state on the training mesh with the shardings of `state_shardings`, ready to donate.

    Arrays that already have their sharding are not copied. Every host must pass the same values.
    """

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or getattr(x, "sharding", None) == sharding:
            return jax.device_put(x, sharding)
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree, state_shardings(tree, fsdp))


def state_template(shapes: Any, fsdp: int = 1) -> Any:
    """The shapes, dtypes and shardings with which to restore a state for training."""

    def template(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(template, shapes, state_shardings(shapes, fsdp))


def gather_to_host(tree: Any) -> Any:
    """Gather part of a state on this host, to sample from.

    If the state is sharded, all hosts must call this together.
    """
    leaves = jax.tree.leaves(tree)
    if any(not x.is_fully_replicated for x in leaves):
        replicated = NamedSharding(leaves[0].sharding.mesh, PartitionSpec())
        tree = _reshard_to(replicated)(tree)
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


@functools.cache
def _reshard_to(sharding: NamedSharding) -> Callable:
    """A compiled identity whose outputs have this sharding."""
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def replicate(tree: Any) -> Any:
    """Put a copy of `tree` on every local device, ready to donate.

    Arrays that are replicated already are not copied.
    """
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def shard(tree: Any) -> Any:
    """Split the first axis of every array of `tree` over the local devices."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec(AXIS)))


def per_shard(function: Callable) -> Callable:
    """Make `function(tree, *arrays)` run on each local device with its shard of the arrays.

    `tree` is replicated. `function` must treat each example independently, so that the compiler has
    nothing to partition. Repeated calls return the same object, so that `jit` does not compile
    again.
    """
    return _per_shard(function, data_mesh())


@functools.cache
def _per_shard(function: Callable, mesh: Mesh) -> Callable:
    def on_shard(tree, arrays):
        return function(tree, *arrays)

    def on_all_shards(tree, *arrays):
        batch = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=(PartitionSpec(), batch),
            out_specs=batch,
            check_vma=False,
        )
        return mapped(tree, arrays)

    return on_all_shards


def map_rows(function: Callable, tree: Any, rows: jax.Array) -> jax.Array:
    """Compute `function(tree, rows)` for one row at a time on each local device.

    One program serves any number of rows, and its memory does not grow with them.
    """
    num_devices = data_mesh().size
    missing = -len(rows) % num_devices
    padded = jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, 0)])
    apply = jax.jit(per_shard(function))
    tree = replicate(tree)
    starts = range(0, len(padded), num_devices)
    groups = [apply(tree, shard(padded[start : start + num_devices])) for start in starts]
    return jnp.concatenate(groups)[: len(rows)]


def padded_batch_size(batch_size: int, num_images: int) -> int:
    """The smaller of both numbers, rounded up to a multiple of the number of local devices.

    Raise ValueError unless both are whole and at least 1.
    """
    check_whole(batch_size=batch_size, num_images=num_images)
    check_at_least(1, batch_size=batch_size, num_images=num_images)
    num_devices = data_mesh().size
    return -(-min(batch_size, num_images) // num_devices) * num_devices


def check_divides(batch_size: int, fsdp: int = 1) -> None:
    """Raise ValueError unless the number of devices of all hosts divides the batch of a step.

    Also raise it unless fsdp divides the number of devices.
    """
    _check_split(batch_size, training_mesh(fsdp).size)


def _check_split(batch_size: int, num_devices: int) -> None:
    if batch_size % num_devices:
        lower = max(batch_size // num_devices, 1) * num_devices
        raise ValueError(
            f"A micro-batch of {batch_size} cannot be split evenly over {num_devices} devices: "
            f"use a multiple of {num_devices}, such as {lower} or {lower + num_devices}."
        )


def rows_of_host(batch_size: int, accumulation: int = 1) -> np.ndarray:
    """The rows of a global batch that this host reads: its shard of each micro-batch, in order."""
    # (accumulation, hosts, rows)
    rows = np.arange(batch_size).reshape(accumulation, jax.process_count(), -1)
    return rows[:, jax.process_index()].ravel()


@dataclasses.dataclass(frozen=True)
class ParallelStep:
    """A training step on all devices, `mapped(state, shard_batch(batch))`.

    The batch holds the rows of this host. The state is donated. `frozen` are further arguments of
    the step, which it does not change.
    """

    mapped: Any
    shard_batch: Callable
    frozen: tuple[Any, ...] = ()

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        return self.mapped(state, self.shard_batch(batch), *self.frozen)

    def host_memory(self, state: Any, batch: Any) -> int:
        """The bytes of host memory that a step needs besides state and batch; 0 if not on a CPU.

        Compiles the step. Later calls reuse the compiled program.
        """
        if jax.default_backend() != "cpu":
            return 0
        lowered = self.mapped.lower(state, self.shard_batch(batch), *self.frozen)
        needed = lowered.compile().memory_analysis()
        outputs = needed.output_size_in_bytes - needed.alias_size_in_bytes
        per_device = needed.temp_size_in_bytes + outputs
        return per_device * jax.local_device_count()


def pmap_step(step: Callable, frozen: tuple = (), mesh: Mesh | None = None) -> ParallelStep:
    """Run `step(state, batch, *frozen)` on every device, each with a shard of the batch.

    Since JAX 0.8 `jax.pmap` is `jit` of `shard_map`; with `None` axes the state stays unstacked. On
    several hosts `jax.pmap` would split and reassemble the arrays at every step, so `jit` and
    `shard_map` are called directly, as they are with a `mesh` of other devices.
    """
    if jax.process_count() > 1 or mesh is not None:
        mesh = mesh or training_mesh()
        replicated = PartitionSpec()
        split = PartitionSpec(AXIS)
        in_specs = (replicated, split, *[replicated for _ in frozen])
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=in_specs, out_specs=replicated, check_vma=False
        )
        shard_batch = functools.partial(_global_batch, NamedSharding(mesh, split))
        return ParallelStep(jax.jit(mapped, donate_argnums=0), shard_batch, frozen)
    in_axes = (None, 0, *[None for _ in frozen])
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=in_axes, out_axes=None, donate_argnums=0)
    stack_shards = functools.partial(_stack_shards, jax.local_device_count())
    return ParallelStep(mapped, stack_shards, frozen)


def jit_step(
    step: Callable, fsdp: int = 1, frozen: tuple[Any, ...] = (), mesh: Mesh | None = None
) -> ParallelStep:
    """Run `step(state, batch, *frozen)` on global arrays, with a sharded batch.

    XLA inserts the collectives. With fsdp above 1 a step first gathers the parameters, those in
    `frozen` too; each device keeps and updates only its shard of the state.
    """
    mesh = mesh or training_mesh(fsdp)
    replicated = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def fsdp_step(state, batch, *frozen):
        params, frozen = jax.lax.with_sharding_constraint((state.params, frozen), replicated)
        state, metrics = step(state._replace(params=params), batch, *frozen)
        return jax.lax.with_sharding_constraint(state, state_shardings(state, fsdp, mesh)), metrics

    if fsdp == 1:
        mapped = jax.jit(step, out_shardings=replicated, donate_argnums=0)
    else:
        mapped = jax.jit(fsdp_step, out_shardings=None, donate_argnums=0)
    return ParallelStep(mapped, functools.partial(_global_batch, split), frozen)


def _stack_shards(num_devices: int, batch: Any) -> Any:
    # (b, ...) -> (devices, b / devices, ...)
    for rows in {len(x) for x in jax.tree.leaves(batch)}:
        _check_split(rows, num_devices)
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def _global_batch(sharding: NamedSharding, batch: Any) -> Any:
    """Assemble the global arrays of a batch; each host passes its own rows."""

    def put(x: Any) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            key_data = put(jax.random.key_data(x))
            return jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(x))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def parallelize(
    make_step: Callable[[str | None], Callable],
    route: str,
    fsdp: int = 1,
    frozen: tuple[Any, ...] = (),
    mesh: Mesh | None = None,
) -> ParallelStep:
    """Run the training step `make_step(axis_name)` on all devices by the route "pmap" or "jit".

    With fsdp above 1 the route is always jit. The step takes a state from `put_state` and this
    host's rows of the batch. `frozen`, from `put_state` too, are further arguments of the step, and
    `mesh` is a `training_mesh` of other devices, to compile for them. Raise ValueError for another
    route.
    """
    check_choice(("pmap", "jit"), route=route)
    if route == "pmap" and fsdp == 1:
        return pmap_step(make_step(AXIS), frozen, mesh)
    return jit_step(make_step(None), fsdp, frozen, mesh)


def describe_devices() -> str:
    """A description such as "2 x cpu", or on several hosts "4 hosts with 8 x TPU v5 lite"."""
    devices = jax.local_devices()
    num_hosts = jax.process_count()
    prefix = f"{num_hosts} hosts with " if num_hosts > 1 else ""
    return f"{prefix}{len(devices)} x {devices[0].device_kind}"
