"""Several hosts: how they connect, what only the primary host does, and how they end together.

Every host runs the same program. The primary host, process 0, writes what people read. A failing
host skips the shutdown barrier; the others stop when its heartbeat times out.
"""

import contextlib
import json
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import parallel
from ddpm_jax.errors import check, one_line

T = TypeVar("T")

HEARTBEAT_TIMEOUT = 30
"""Seconds without a heartbeat after which a host counts as lost."""
AUTO = "auto"
LOST_HOST_STATUSES = (
    "UNKNOWN",
    "UNAVAILABLE",
    "INTERNAL",
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
)
"""Status codes with which XLA's errors begin when a collective fails on another host."""


@contextlib.contextmanager
def distributed(
    coordinator: str | None, num_hosts: int | None = None, host_index: int | None = None
) -> Iterator[None]:
    """Connect this process to the other hosts of a run for the duration of the block.

    `coordinator` is HOST:PORT of the first host. It needs `num_hosts` and the `host_index` of this
    host, from 0. "auto" reads all three from the environment (Slurm,
    Kubernetes, TPU pods; see `jax.distributed.initialize`). None runs on this host alone.

    Enter the block before the first use of a device. Raise ValueError if the hosts cannot connect.
    If the block raises, the process exits at once.
    """
    check(
        coordinator is not None or (num_hosts, host_index) == (None, None),
        "--hosts and --host describe a run on several hosts: give --coordinator HOST:PORT too.",
    )
    if coordinator is None:
        yield
        return
    _connect(coordinator, num_hosts, host_index)
    try:
        yield
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            _exit_without_barrier(1)
        _exit_without_barrier(end.code or 0)
    except BaseException:
        traceback.print_exc()
        _exit_without_barrier(1)
    # The shutdown barrier fails if another host crashed after its last step. This host is done, so
    # ignore that.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()


@contextlib.contextmanager
def explain_lost_host() -> Iterator[None]:
    """Turn XLA's error about a lost host into a ConnectionError that names the remedy."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Do not count the hosts of another error: JAX may have no device to do so.
        if not str(error).startswith(LOST_HOST_STATUSES) or count() == 1:
            raise
        reason = one_line(error, 300)
        raise ConnectionError(
            f"Another host failed or runs another program ({reason}): "
            "start the same command, without --overwrite, on all hosts again to resume from the "
            "newest checkpoint."
        ) from error


def _connect(coordinator: str, num_hosts: int | None, host_index: int | None) -> None:
    auto = coordinator == AUTO
    by_address = (
        ":" in coordinator
        and num_hosts is not None
        and host_index is not None
        and 0 <= host_index < num_hosts
    )
    check(
        auto or by_address,
        "The description of the hosts is incomplete or wrong: give --coordinator HOST:PORT of the "
        "first host, --hosts COUNT and --host INDEX from 0, or --coordinator auto under Slurm, "
        "Kubernetes or on a TPU pod.",
    )
    # JAX's preemption service would take SIGTERM, which `StopSignal` handles.
    jax.config.update("jax_enable_preemption_service", False)
    address = None if auto else coordinator
    try:
        jax.distributed.initialize(
            address, num_hosts, host_index, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except (ValueError, RuntimeError) as error:
        where = "as the environment describes them" if auto else f"at {coordinator}"
        raise ValueError(
            f"The hosts could not connect {where} ({error}): start the same command on every host, "
            "and check --coordinator, --hosts and --host."
        ) from error


def _exit_without_barrier(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_primary() -> bool:
    """Whether this is the host that writes logs, images and manifests."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_non_primary() -> Iterator[None]:
    """Discard stdout on every host but the primary one; stderr still shows errors and warnings."""
    with contextlib.ExitStack() as stack:
        if not is_primary():
            discard = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(discard))
        yield


def count() -> int:
    """The number of hosts."""
    return jax.process_count()


def barrier(name: str) -> None:
    """Block until every host has reached the barrier of this name."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def primary_first(name: str, function: Callable[[], T]) -> T:
    """Return the result of a function that the primary host calls before the others.

    It alone prepares files on a shared disk. `name` is that of the barrier between them.
    """
    if not is_primary():
        barrier(name)
    result = function()
    if is_primary():
        barrier(name)
    return result


def broadcast(number: int) -> int:
    """Return the primary host's number on every host."""
    if count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def assert_identical(value: Any) -> None:
    """Raise ValueError if this JSON value differs from the primary host's."""
    checksum = zlib.crc32(json.dumps(value).encode()) & 0x7FFFFFFF
    check(
        broadcast(checksum) == checksum,
        "This host has another recipe, other data or another run than the first host: "
        "give all hosts the same command, data and directory.",
    )


class DelayedMax:
    """Maximum over the hosts, returned one call late so that no host blocks on the step in flight.

    The first call returns 0. On a single host every call returns its own number.
    """

    def __init__(self) -> None:
        mesh = parallel.training_mesh()
        self._pending: jax.Array | int = 0
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> int:
        if count() == 1:
            return number
        previous = self._pending
        # One number for each local device, so that the array is sharded over all devices.
        local = np.full(jax.local_device_count(), number, np.int32)
        self._pending = self._max(jax.make_array_from_process_local_data(self._sharding, local))
        return int(previous)
