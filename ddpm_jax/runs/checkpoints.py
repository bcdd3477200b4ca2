"""Checkpoints by Orbax: the parts of the state as separate items, and the resolved config beside them.

A run's directory holds `checkpoints/STEP/` and `config.json`, and `snapshots/STEP/` with the power-function averages
of a run that tracks them. Orbax writes a step aside and renames it; then a manifest with a hash of each file is put
into it, when all of them are on disk (`manifest.py`). A step that is not as its manifest says does not count.
What a kill may lose is `config.Checkpoint.every`, and `.wait`, which `loop` follows.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.config import Checkpoint
from ddpm_jax.devices import hosts
from ddpm_jax.files import sync
from ddpm_jax.runs import manifest
from ddpm_jax.runs.log_levels import log_level
from ddpm_jax.runs.steps import FOLDER, SNAPSHOTS, steps

UNFINISHED, DROPPED = ".orbax-checkpoint-tmp", ".dropped"
NOISY = ("absl", "asyncio")
"""Loggers by which Orbax reports each save in many lines, and each failure, which it raises too, with tracebacks."""


class CheckpointWriter:
    """Saves {item: pytree of arrays} by step; a context manager that waits for saves under way.

    A step is given up only after the manifest of a newer one stands. A save that fails is named where it is waited for,
    at the next one at the latest: by OSError, or, if the settings say to go on, on stderr; at the end by OSError in any
    case. On several hosts all save together, and none can go on without the others.
    """

    def __init__(self, workdir: str | Path, settings: Checkpoint | None = None):
        self._workdir, self._settings = Path(workdir), settings or Checkpoint()
        self._folder = (self._workdir / FOLDER).resolve()
        self._go_on = self._settings.on_failure == "continue"
        self._under_way, self._sealing = 0, _done()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> CheckpointWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(log_level(logging.CRITICAL, *NOISY))
            self._hook = sys.unraisablehook
            stack.callback(setattr, sys, "unraisablehook", self._hook)
            sys.unraisablehook = self._without_event_loops
            self._clear_unfinished(self._folder)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            with self._failures_named(go_on=kind is not None):
                self._sealing.result()
        finally:
            self._thread.shutdown()
            self._undo.close()

    def _without_event_loops(self, ignored: Any) -> None:
        """TensorStore's threads have a traceback printed each where the loop they report to ended by a failure."""
        if str(ignored.exc_value) != "Event loop is closed":
            self._hook(ignored)

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        config: Any,
        images: int | None = None,
        good: int = 0,
    ) -> None:
        """Starts to save, with the config as JSON; arrays are copied first, so the caller may go on and donate them.

        `images` is how many the run is trained on, on which its batches depend. The newest step below `good` is kept
        too: one to go back to, where the weights of those from there on may be lost.
        """
        self.wait()
        with self._failures_named(self._go_on):
            self._under_way = step
            saved = {name: ocp.args.StandardSave(_one_copy(tree)) for name, tree in items.items()}
            facts = {
                "config": ocp.args.JsonSave(config),
                "data": ocp.args.JsonSave({"images": images}),
            }
            writer = _writer()
            try:
                writer.save(self._folder / str(step), args=ocp.args.Composite(**saved, **facts))
            except Exception:
                writer.close()
                raise
            self._sealing = self._thread.submit(self._seal, writer, self._folder / str(step), good)

    def wait(self) -> None:
        """Returns when the save under way, if any, has its manifest, on the first host, or has failed."""
        with self._failures_named(self._go_on):
            sealing, self._sealing = self._sealing, _done()
            sealing.result()

    def _seal(self, writer: ocp.AsyncCheckpointer, folder: Path, good: int) -> None:
        """Waits until a step is written, has it on disk with its manifest, and drops those that are not to be kept."""
        with _manifest_after(folder), contextlib.closing(writer):
            writer.wait_until_finished()
        if hosts.is_primary():
            sync(self._folder)
            self._drop_old(good)

    @contextlib.contextmanager
    def _failures_named(
        self, go_on: bool, what: str | None = None, folder: Path | None = None
    ) -> Iterator[None]:
        try:
            yield
        except (
            jax.errors.JaxRuntimeError,
            TimeoutError,
        ):  # a step or another host that failed, not the disk
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds
            self._clear_unfinished(folder or self._folder)
            left = ", ".join(map(str, steps(self._workdir))) or "none"
            what = what or f"step {self._under_way}"
            message = f"{what} was not saved ({_in_short(error)}); checkpoints there are: {left}"
            if not go_on:
                raise OSError(
                    f"{message}: make room, or allow writing to {self._folder}, and start again"
                ) from error
            print(message, file=sys.stderr)

    def _drop_old(self, good: int) -> None:
        found = steps(self._workdir)
        spared = max((step for step in found if step < good), default=0)
        for step in found[: -self._settings.keep_last]:
            if step != spared and (
                self._settings.keep_every is None or step % self._settings.keep_every
            ):
                shutil.rmtree((self._folder / str(step)).rename(self._folder / f"{step}{DROPPED}"))

    def _clear_unfinished(self, folder: Path) -> None:
        for mark in (UNFINISHED, DROPPED) if hosts.is_primary() else ():
            for path in folder.glob(f"*{mark}*"):
                shutil.rmtree(path, ignore_errors=True)

    def save_snapshot(self, step: int, trees: Mapping[str, Any]) -> None:
        """Saves {name: pytree of arrays} of a step for good; all of it is on disk when this returns."""
        folder = (self._workdir / SNAPSHOTS / str(step)).resolve()
        named = self._failures_named(self._go_on, f"the snapshot of step {step}", folder.parent)
        with named, _manifest_after(folder), ocp.StandardCheckpointer() as writer:
            writer.save(folder, _one_copy(dict(trees)), force=True)


@contextlib.contextmanager
def _manifest_after(folder: Path) -> Iterator[None]:
    """The first host writes the folder's manifest after the block, or removes the folder where either fails."""
    try:
        yield
        if hosts.is_primary():
            manifest.write(folder)
    except Exception:
        if hosts.is_primary():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _writer() -> ocp.AsyncCheckpointer:
    """For one save: it keeps some of what failed to raise it later, where it would be taken for another's failure."""
    at_once = ocp.AsyncOptions(
        create_directories_asynchronously=False
    )  # else a failure leaves threads that wait
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=at_once)


def _done() -> Future:
    """What has nothing to wait for."""
    future: Future = Future()
    future.set_result(None)
    return future


@log_level(logging.CRITICAL, *NOISY)
def restore(workdir: str | Path, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """The items named in `like`, placed as its arrays; raises ValueError if their shapes differ."""
    folder = (Path(workdir) / FOLDER / str(step)).resolve()
    for name, tree in like.items():
        _check_shapes(folder / name, f"checkpoint {step}", name, tree)
    wanted = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(folder, args=ocp.args.Composite(**wanted))
    return {name: found[name] for name in like}


def _one_copy(tree: Any) -> Any:
    """The arrays of this host's first device, where each device holds them whole; on several hosts for NumPy.

    Orbax would have every device write a share of each array, for which it compiles a slice per shape and device. What
    is NumPy's it has the first host write alone.
    """

    def first(x: Any) -> Any:
        if not (isinstance(x, jax.Array) and x.is_fully_replicated):
            return x
        copy = x.addressable_data(0)
        return copy if hosts.count() == 1 else np.asarray(copy)

    return jax.tree.map(first, tree)


@log_level(logging.CRITICAL, *NOISY)
def read_trees(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The trees named in `like` of all that lie in a snapshot or in an item of a checkpoint, as its kind of arrays.

    Raises ValueError if their shapes differ.
    """
    _check_shapes(folder, str(folder), "averages", like, set(like))
    args = ocp.checkpoint_utils.construct_restore_args(dict(like))
    wanted = ocp.args.PyTreeRestore(dict(like), restore_args=args, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder.resolve(), args=wanted)


def _check_shapes(
    folder: Path, holder: str, name: str, like: Any, trees: set[str] | None = None
) -> None:
    if not folder.exists():
        raise ValueError(
            f"{holder} holds no {name}: it was not saved by this program, or is damaged"
        )
    with ocp.StandardCheckpointer() as reader:
        saved, wanted = _shapes(reader.metadata(folder.resolve()).item_metadata.tree), _shapes(like)
    for path in sorted(saved | wanted):
        asked = trees is None or path.partition("/")[0] in trees
        if asked and saved.get(path) != wanted.get(path):
            raise ValueError(
                f"{holder} holds another model's {name} than its recipe's: {path} is "
                f"{saved.get(path, 'missing')} there and {wanted.get(path, 'missing')} in the recipe"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _in_short(error: BaseException) -> str:
    """What an error says, on one line that is not too long."""
    return " ".join(str(error).split())[:300]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )
