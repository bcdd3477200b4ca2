"""Checkpoints with Orbax: each part of the state is an item of its own, and the config is JSON.

A run's directory holds `config.json` and one folder `checkpoints/STEP/` per saved step. A run that
tracks power-function averages also saves them to `snapshots/STEP/`. Orbax writes a step under a
temporary name and renames it. Once all its files are on disk, a manifest with a hash of each file
is added (`manifest.py`). A step that does not match its manifest is never used.
`config.Checkpoint` sets how often `loop` saves, and so how many steps a kill can lose.
`config.CONFIG_FORMAT` is the format number of a saved config.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.config import Checkpoint
from ddpm_jax.devices import hosts
from ddpm_jax.errors import one_line
from ddpm_jax.files import sync
from ddpm_jax.runs import manifest
from ddpm_jax.runs.log_levels import log_level
from ddpm_jax.runs.saved_steps import FOLDER, SNAPSHOTS, best_step, steps

UNFINISHED_MARK = ".orbax-checkpoint-tmp"
DROPPED_MARK = ".dropped"
NOT_OF_THE_DISK = (jax.errors.JaxRuntimeError, TimeoutError)
"""Errors of a save that mean that a training step or another host failed."""
NOISY_LOGGERS = ("absl", "asyncio")
"""Loggers to which Orbax writes every save, and tracebacks of errors that it also raises."""


class CheckpointWriter:
    """Save {item: pytree of arrays} by step. Leaving the context waits for the save in progress.

    An old step is deleted only after a newer one has its manifest. A failed save raises OSError, or
    is reported on stderr if the setting `on_failure` is "continue". A failure in the background is
    reported by the next call of `wait` or `save`, or at the end of the context. At the end it
    raises OSError whatever the setting, unless another error ended the block.
    On several hosts all save together, and none can continue without the others.
    """

    def __init__(self, workdir: str | Path, settings: Checkpoint | None = None):
        self._workdir = Path(workdir)
        self._settings = settings or Checkpoint()
        self._folder = (self._workdir / FOLDER).resolve()
        self._continue_on_failure = self._settings.on_failure == "continue"
        self._step_in_progress = 0
        self._pending_save = _completed_future()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> CheckpointWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(log_level(logging.CRITICAL, *NOISY_LOGGERS))
            self._hook = sys.unraisablehook
            stack.callback(setattr, sys, "unraisablehook", self._hook)
            sys.unraisablehook = self._ignore_closed_event_loops
            self._clear_unfinished(self._folder)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # A failed save must not hide the error that ended the block.
        has_error = kind is not None
        try:
            with self._report_failure(continue_on_failure=has_error):
                self._pending_save.result()
        finally:
            self._thread.shutdown()
            self._undo.close()

    def _ignore_closed_event_loops(self, unraisable: Any) -> None:
        """Hide TensorStore's tracebacks about an event loop that a failed save has closed."""
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        config: Any,
        data: Mapping[str, Any] | None = None,
        last_finite_step: int = 0,
    ) -> None:
        """Start to save a step, with `config` as JSON, and return once the arrays are copied.

        The caller may then donate the arrays. `data` describes the data set, as JSON: its size, on
        which the batches depend, and its classes; it may hold an `evaluation`. Keeps the newest
        steps and the best one. While updates are skipped, also keeps the newest step before
        `last_finite_step`, to roll back to: the weights of later steps may have no finite loss.
        """
        self.wait()
        with self._report_failure(self._continue_on_failure):
            self._step_in_progress = step
            saved = {name: ocp.args.StandardSave(_one_copy(tree)) for name, tree in items.items()}
            facts = {
                "config": ocp.args.JsonSave(config),
                "data": ocp.args.JsonSave(dict(data or {})),
            }
            folder = self._folder / str(step)
            writer = _make_writer()
            try:
                writer.save(folder, args=ocp.args.Composite(**saved, **facts))
            except Exception as error:
                writer.close()
                if not self._continue_on_failure or isinstance(error, NOT_OF_THE_DISK):
                    raise
                # Report it by the next `wait`, or at the end, where it ends the run.
                self._pending_save = _failed_future(error)
                return
            self._pending_save = self._thread.submit(self._finish, writer, folder, last_finite_step)

    def wait(self) -> None:
        """Wait until the save in progress has its manifest, or has failed.

        Only the primary host writes the manifest; the others return before it is written.
        """
        with self._report_failure(self._continue_on_failure):
            # Reset before waiting, so that a failure is reported once.
            pending_save = self._pending_save
            self._pending_save = _completed_future()
            pending_save.result()

    def _finish(self, writer: ocp.AsyncCheckpointer, folder: Path, last_finite_step: int) -> None:
        """Wait until a step is written, add its manifest, and delete the steps not to keep."""
        with _manifest_after(folder), contextlib.closing(writer):
            writer.wait_until_finished()
        if hosts.is_primary():
            sync(self._folder)
            self._drop_old(last_finite_step)

    @contextlib.contextmanager
    def _report_failure(
        self,
        continue_on_failure: bool,
        description: str | None = None,
        folder: Path | None = None,
    ) -> Iterator[None]:
        """Turn an error of a save in the block into an OSError, or print it and continue.

        Errors of a training step or of another host pass unchanged. `description` and `folder`
        default to the step in progress and the folder of checkpoints.
        """
        try:
            yield
        except NOT_OF_THE_DISK:
            raise
        except Exception as error:
            # Orbax and TensorStore raise errors of many types.
            logging.getLogger("asyncio").addFilter(REPORTED_FAILURES)
            self._clear_unfinished(folder or self._folder)
            saved = ", ".join(map(str, steps(self._workdir))) or "none"
            description = description or f"Step {self._step_in_progress}"
            message = f"{description} was not saved ({_shorten(error)})"
            if not continue_on_failure:
                remedy = f"make room or allow writing to {self._folder}, and start again"
                raise OSError(f"{message}: {remedy}. Saved checkpoints: {saved}.") from error
            print(f"{message}. Saved checkpoints: {saved}.", file=sys.stderr)

    def _drop_old(self, last_finite_step: int) -> None:
        saved = steps(self._workdir)
        rollback_step = max((step for step in saved if step < last_finite_step), default=0)
        every = self._settings.keep_every
        best = best_step(self._workdir)
        for step in saved[: -self._settings.keep_last]:
            keep_for_good = every is not None and step % every == 0
            if step not in (rollback_step, best) and not keep_for_good:
                # Rename first, so that an interrupted deletion leaves no partial step.
                dropped = self._folder / f"{step}{DROPPED_MARK}"
                shutil.rmtree((self._folder / str(step)).rename(dropped))

    def _clear_unfinished(self, folder: Path) -> None:
        if not hosts.is_primary():
            return
        for mark in (UNFINISHED_MARK, DROPPED_MARK):
            for path in folder.glob(f"*{mark}*"):
                shutil.rmtree(path, ignore_errors=True)

    def save_snapshot(self, step: int, trees: Mapping[str, Any]) -> None:
        """Save {name: pytree of arrays} of a step permanently. Block until all of it is on disk."""
        folder = (self._workdir / SNAPSHOTS / str(step)).resolve()
        description = f"The snapshot of step {step}"
        reported = self._report_failure(self._continue_on_failure, description, folder.parent)
        with reported, _manifest_after(folder), ocp.StandardCheckpointer() as writer:
            writer.save(folder, _one_copy(dict(trees)), force=True)


class _ReportedFailures(logging.Filter):
    """Drop asyncio's reports of failed tasks of Orbax, whose failure has been reported.

    A failed task is reported when it is freed, which may be as late as the exit of the process.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        frames = traceback.extract_tb(error.__traceback__ if error else None)
        return not any("orbax" in Path(frame.filename).parts for frame in frames)


REPORTED_FAILURES = _ReportedFailures()


@contextlib.contextmanager
def _manifest_after(folder: Path) -> Iterator[None]:
    """Write the folder's manifest after the block, or remove the folder if either fails.

    Only the primary host does so.
    """
    try:
        yield
        if hosts.is_primary():
            manifest.write(folder)
    except Exception:
        if hosts.is_primary():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_writer() -> ocp.AsyncCheckpointer:
    """Make a writer for one save.

    On reuse Orbax would raise the error of an earlier save and so blame the wrong step.
    """
    # If directories are created in the background, a failure leaves threads that wait forever.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)


def _failed_future(error: Exception) -> Future:
    future: Future = Future()
    future.set_exception(error)
    return future


def _completed_future() -> Future:
    """A future with nothing to wait for."""
    future: Future = Future()
    future.set_result(None)
    return future


@log_level(logging.CRITICAL, *NOISY_LOGGERS)
def restore(workdir: str | Path, step: int, template: Mapping[str, Any]) -> dict[str, Any]:
    """Restore the items named in `template`, with the sharding of its arrays.

    Raise ValueError if shapes differ from the template's.
    """
    folder = (Path(workdir) / FOLDER / str(step)).resolve()
    for name, tree in template.items():
        _check_shapes(folder / name, f"Checkpoint {step}", name, tree)
    args = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in template.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        restored = reader.restore(folder, args=ocp.args.Composite(**args))
    return {name: restored[name] for name in template}


def _one_copy(tree: Any) -> Any:
    """Replace each replicated array by one copy, to save it once.

    The copy is on this host's first device or, on several hosts, a NumPy array, which the primary
    host alone writes. Given a replicated array, Orbax would have each device write a part of it and
    compile a slice per shape and device.
    """

    def first_copy(x: Any) -> Any:
        if not (isinstance(x, jax.Array) and x.is_fully_replicated):
            return x
        copy = x.addressable_data(0)
        return copy if hosts.count() == 1 else np.asarray(copy)

    return jax.tree.map(first_copy, tree)


@log_level(logging.CRITICAL, *NOISY_LOGGERS)
def read_trees(
    folder: Path, shapes: Mapping[str, Any], checkpoint: str | None = None
) -> dict[str, Any]:
    """Read the trees named in `shapes` from a snapshot or one item of a checkpoint, into NumPy.

    Other trees in the folder are not read. If `checkpoint` names a checkpoint, `folder` must be its
    item params, and other trees are an error. Raise ValueError if shapes differ from those given.
    """
    if checkpoint is None:
        _check_shapes(folder, f"Folder {folder}", "averages", shapes, set(shapes))
    else:
        _check_shapes(folder, checkpoint, "params", shapes)
    # Orbax keeps arrays on the host if the template is NumPy. Broadcast zeros take no memory.
    template = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), dict(shapes))
    restore_args = ocp.checkpoint_utils.construct_restore_args(template)
    args = ocp.args.PyTreeRestore(template, restore_args=restore_args, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder.resolve(), args=args)


def _check_shapes(
    folder: Path, holder: str, item: str, template: Any, trees: set[str] | None = None
) -> None:
    """Raise ValueError if the shapes saved in a folder differ from a template's.

    `trees` limits the check to these top-level names. `holder` and `item` name the folder and its
    content in the message.
    """
    if not folder.exists():
        raise ValueError(
            f"{holder} has no {item}, so it is corrupt or ddpm_jax did not write it: "
            "use another checkpoint."
        )
    with ocp.StandardCheckpointer() as reader:
        saved = _shapes(reader.metadata(folder.resolve()).item_metadata.tree)
    expected = _shapes(template)
    for path in sorted(saved | expected):
        is_checked = trees is None or path.partition("/")[0] in trees
        if is_checked and saved.get(path) != expected.get(path):
            there = saved.get(path, "missing")
            here = expected.get(path, "missing")
            raise ValueError(
                f"{holder} holds the {item} of another model "
                f"({path} is {there} there and {here} in the recipe): "
                "use the recipe that it was saved with."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _shorten(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters."""
    return one_line(error, 300)


def _abstract(tree: Any) -> Any:
    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(abstract, tree)
