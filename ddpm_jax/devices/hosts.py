"""Several hosts: how they find each other, what only the first does, on what they agree, how they end together.

Every host runs the same program. The first writes what people read; a host that fails ends at once, without the
farewell for which the others would have to stand ready, and the others end when they miss it.
"""

import contextlib
import json
import os
import sys
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import parallel
from ddpm_jax.errors import check

MISSED_AFTER = 30
"""Seconds without a sign of life after which a host counts as gone."""
AUTO = "auto"
STATUSES = (
    "UNKNOWN",
    "UNAVAILABLE",
    "INTERNAL",
    "ABORTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
)


@contextlib.contextmanager
def distributed(
    coordinator: str | None, count: int | None = None, index: int | None = None
) -> Iterator[None]:
    """This process as one of several hosts while the block runs; alone where there is no `coordinator`.

    `coordinator` is HOST:PORT of the first, with the `count` of hosts and the `index` of this one, or "auto" where the
    surroundings tell (Slurm, Kubernetes, TPU pods; `jax.distributed.initialize`). To be entered before the first use of
    a device. Raises ValueError where the hosts do not find each other. A block that fails ends the process.
    """
    check(
        coordinator is not None or (count, index) == (None, None),
        "--hosts and --host need --coordinator HOST:PORT",
    )
    if coordinator is None:
        yield
        return
    _connect(coordinator, count, index)
    try:
        yield
    except SystemExit as end:
        _exit_without_barrier(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        _exit_without_barrier(1)
    with contextlib.suppress(
        jax.errors.JaxRuntimeError
    ):  # another host that ended badly after its last step
        jax.distributed.shutdown()


@contextlib.contextmanager
def explain_lost_host() -> Iterator[None]:
    """What XLA says when it loses another host is a ConnectionError that says what to do."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if count() == 1 or not str(error).startswith(STATUSES):
            raise
        said = " ".join(str(error).split())[:300]
        again = (
            "start the same command on all hosts again, and it goes on from the newest checkpoint"
        )
        raise ConnectionError(
            f"another host is gone, or does something else ({said}): {again}"
        ) from error


def _connect(coordinator: str, count: int | None, index: int | None) -> None:
    auto = coordinator == AUTO
    check(
        auto
        or (":" in coordinator and count is not None and index is not None and 0 <= index < count),
        "give --coordinator HOST:PORT of the first host, --hosts COUNT and --host INDEX from 0, or --coordinator auto "
        "under Slurm, Kubernetes or on a TPU pod",
    )
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours
    address = None if auto else coordinator
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=MISSED_AFTER)
    except (ValueError, RuntimeError) as error:
        where = "in the surroundings" if auto else f"at {coordinator}"
        raise ValueError(f"the hosts did not find each other {where}: {error}") from error


def _exit_without_barrier(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_primary() -> bool:
    """Whether this host is the one that writes logs, pictures and manifests."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_non_primary() -> Iterator[None]:
    """Hosts but the first print nothing while the block runs; what goes wrong is still told on stderr."""
    with contextlib.ExitStack() as stack:
        if not is_primary():
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
            )
        yield


def count() -> int:
    """How many hosts there are."""
    return jax.process_count()


def barrier(what: str) -> None:
    """Returns when every host has come to `what`."""
    if count() > 1:
        multihost_utils.sync_global_devices(what)


def broadcast(number: int) -> int:
    """The number that the first host gives."""
    return number if count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def assert_identical(what: Any) -> None:
    """Raises ValueError where another host gives another JSON value than the first does."""
    mine = zlib.crc32(json.dumps(what).encode()) & 0x7FFFFFFF
    other = "this host has another recipe, other data or another run than the first: give all hosts the same"
    check(broadcast(mine) == mine, other)


class DelayedMax:
    """The largest of the numbers that the hosts gave at the call before, at this one where there is one host.

    One call late, so that no host waits for the step that it has just begun.
    """

    def __init__(self) -> None:
        self._asked: jax.Array | int = 0
        mesh = parallel.training_mesh()
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> int:
        if count() == 1:
            return number
        before = self._asked
        mine = np.full(jax.local_device_count(), number, np.int32)
        self._asked = self._largest(jax.make_array_from_process_local_data(self._split, mine))
        return int(before)
