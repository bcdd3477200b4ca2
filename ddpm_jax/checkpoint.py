"""Checkpoints by Orbax: the parts of the state as separate items, and the resolved config beside them.

A run's directory holds `checkpoints/STEP/` and `config.json`, and `snapshots/STEP/` with the power-function averages
of a run that tracks them. Orbax writes a step aside and renames it; then a manifest with a hash of each file is put
into it, when all of them are on disk (`manifest.py`). A step that is not as its manifest says does not count.
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
import orbax.checkpoint as ocp

from ddpm_jax import manifest
from ddpm_jax.files import free_name, sync

FOLDER = "checkpoints"
SNAPSHOTS = "snapshots"
UNFINISHED, DROPPED, DAMAGED = ".orbax-checkpoint-tmp", ".dropped", ".damaged"

# Orbax reports each save in many lines of its own, and each failure, which it raises too, with a traceback a thread.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """Saves {item: pytree of arrays} by step; a context manager that waits for saves under way.

    A step is given up only after the manifest of a newer one stands. A save that fails is named at the next one: by
    OSError, or, to `go_on`, on stderr; at the end by OSError in any case.
    """

    def __init__(self, workdir: str | Path, *, keep_last: int = 2, keep_every: int | None = None, go_on: bool = False):
        self._folder = (Path(workdir) / FOLDER).resolve()
        self._keep_last, self._keep_every, self._go_on = keep_last, keep_every, go_on
        self._under_way, self._sealing = 0, _done()
        self._thread = ThreadPoolExecutor(1)
        at_once = ocp.AsyncOptions(create_directories_asynchronously=False)  # else a failure leaves threads that wait
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=at_once)

    def __enter__(self) -> Checkpoints:
        self._clear_unfinished()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._failures_named(go_on=kind is not None):
            self._sealing.result()
        self._thread.shutdown()
        self._writer.close()

    def save(self, step: int, items: Mapping[str, Any], config: Any) -> None:
        """Starts to save; the arrays are copied first, so the caller may go on and donate them."""
        with self._failures_named(self._go_on):
            sealing, self._sealing = self._sealing, _done()
            sealing.result()
        with self._failures_named(self._go_on):
            self._under_way = step
            saved = {name: ocp.args.StandardSave(_one_copy(tree)) for name, tree in items.items()}
            composite = ocp.args.Composite(**saved, config=ocp.args.JsonSave(config))
            self._writer.save(self._folder / str(step), args=composite)
            self._sealing = self._thread.submit(self._seal, self._folder / str(step))

    def _seal(self, folder: Path) -> None:
        """Waits until a step is written, has it on disk with its manifest, and drops those that are not to be kept."""
        self._writer.wait_until_finished()
        try:
            manifest.write(folder)
        except OSError:
            shutil.rmtree(folder)
            raise
        sync(self._folder)
        self._drop_old()

    @contextlib.contextmanager
    def _failures_named(self, go_on: bool) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            self._clear_unfinished()
            left = ", ".join(map(str, steps(self._folder.parent))) or "none"
            message = f"step {self._under_way} was not saved ({_in_short(error)}); checkpoints there are: {left}"
            if not go_on:
                raise OSError(f"{message}: make room, or allow writing to {self._folder}, and start again") from error
            print(message, file=sys.stderr)

    def _drop_old(self) -> None:
        for step in steps(self._folder.parent)[: -self._keep_last]:
            if self._keep_every is None or step % self._keep_every:
                shutil.rmtree((self._folder / str(step)).rename(self._folder / f"{step}{DROPPED}"))

    def _clear_unfinished(self) -> None:
        for mark in (UNFINISHED, DROPPED):
            for path in self._folder.glob(f"*{mark}*"):
                shutil.rmtree(path, ignore_errors=True)


def _done() -> Future:
    """What has nothing to wait for."""
    future: Future = Future()
    future.set_result(None)
    return future


def restore(workdir: str | Path, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """The items named in `like`, placed as its arrays; raises ValueError if their shapes differ."""
    folder = (Path(workdir) / FOLDER / str(step)).resolve()
    for name, tree in like.items():
        _check_shapes(folder / name, f"checkpoint {step}", name, tree)
    wanted = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(folder, args=ocp.args.Composite(**wanted))
    return {name: found[name] for name in like}


def save_snapshot(workdir: str | Path, step: int, trees: Mapping[str, Any]) -> None:
    """Saves {name: pytree of arrays} of a step for good; all of it is on disk when this returns."""
    folder = Path(workdir, SNAPSHOTS, str(step)).resolve()
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, _one_copy(dict(trees)), force=True)
    manifest.write(folder)


def _one_copy(tree: Any) -> Any:
    """The arrays of this host's first device, where each of its devices holds them whole.

    Orbax would have every device write a share of each array, for which it compiles a slice per shape and device.
    """

    def first(x: Any) -> Any:
        whole = isinstance(x, jax.Array) and x.is_fully_addressable and x.is_fully_replicated
        return x.addressable_data(0) if whole else x

    return jax.tree.map(first, tree)


def drop_snapshots(workdir: str | Path, after: int) -> None:
    """Removes the snapshots of later steps, which a run that goes on from step `after` makes anew."""
    for step in steps(workdir, SNAPSHOTS):
        if step > after:
            shutil.rmtree(Path(workdir, SNAPSHOTS, str(step)))


def read_trees(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The trees named in `like` of all that lie in a snapshot or in an item of a checkpoint, as its kind of arrays.

    Raises ValueError if their shapes differ.
    """
    _check_shapes(folder, str(folder), "averages", like, set(like))
    args = ocp.checkpoint_utils.construct_restore_args(dict(like))
    wanted = ocp.args.PyTreeRestore(dict(like), restore_args=args, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder.resolve(), args=wanted)


def _check_shapes(folder: Path, holder: str, name: str, like: Any, trees: set[str] | None = None) -> None:
    if not folder.exists():
        raise ValueError(f"{holder} holds no {name}: it was not saved by this program, or is damaged")
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
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _in_short(error: BaseException) -> str:
    """What an error says, on one line that is not too long."""
    return " ".join(str(error).split())[:300]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


def find(ckpt: str | Path, step: int | None = None) -> tuple[Path, int]:
    """The run's directory and the step to use, by default the newest that is whole.

    A damaged one that is passed over is named on stderr. Raises FileNotFoundError or ValueError.
    """
    workdir = Path(ckpt)
    if not workdir.exists():
        raise FileNotFoundError(f"{workdir} does not exist: give the directory of a run, such as runs/digits")
    found = steps(workdir)
    if not found:
        raise FileNotFoundError(f"{workdir} holds no checkpoint ({FOLDER}/STEP): give the directory of a run")
    if step is None:
        return workdir, newest(workdir)
    if step not in found:
        raise ValueError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    if what := damage(workdir, step):
        raise ValueError(f"checkpoint {step} of {workdir} is damaged ({what}): use another of {found}")
    return workdir, step


def newest(workdir: str | Path) -> int:
    """The newest step that is whole, 0 where none was saved; each damaged one above it is named on stderr.

    Raises ValueError where all are damaged.
    """
    if not steps(workdir):
        return 0
    for step in whole(workdir):
        return step
    raise ValueError(f"{workdir} holds no whole checkpoint: put a copy of one back, or --overwrite the run")


def whole(workdir: str | Path, folder: str = FOLDER) -> Iterator[int]:
    """The steps without damage, the newest first; each damaged one is named on stderr when it is come to."""
    for step in reversed(steps(workdir, folder)):
        if what := damage(workdir, step, folder):
            print(f"{Path(workdir, folder, str(step))} is damaged and left out: {what}", file=sys.stderr)
        else:
            yield step


def damage(workdir: str | Path, step: int, folder: str = FOLDER) -> str | None:
    """What is wrong with a step, None if every file of it is as it was saved."""
    return manifest.damage(Path(workdir, folder, str(step)))


def set_aside(workdir: str | Path, after: int) -> None:
    """Renames the steps above one, damaged as they are, so that they can be saved again."""
    for step in steps(workdir):
        if step > after:
            path = Path(workdir, FOLDER, str(step))
            path.rename(free_name(path.with_suffix(DAMAGED)))


def steps(workdir: str | Path, folder: str = FOLDER) -> list[int]:
    """The steps saved in a run's directory, rising; those of its snapshots with `folder=SNAPSHOTS`."""
    return sorted(int(path.name) for path in (Path(workdir) / folder).glob("*") if path.name.isdigit())


def config_file(workdir: str | Path, step: int) -> Path:
    """Where the config saved with a step lies: plain JSON, readable without a device."""
    return Path(workdir, FOLDER, str(step), "config", "metadata")
