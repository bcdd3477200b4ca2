"""Checkpoints by Orbax: the parts of the state as separate items, and the resolved config beside them.

A run's directory holds `checkpoints/STEP/` (written aside and renamed, so never half there) and `config.json`, and
`snapshots/STEP/` with the power-function averages of a run that tracks them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

FOLDER = "checkpoints"
SNAPSHOTS = "snapshots"

# Orbax reports each save in many INFO and WARNING lines of its own; failures are raised, not logged.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """Saves and restores {item: pytree of arrays} by step; a context manager that waits for saves under way."""

    def __init__(self, workdir: str | Path, *, keep_last: int = 2, keep_every: int | None = None):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every, enable_async_checkpointing=True, create=True
        )
        self._manager = ocp.CheckpointManager((Path(workdir) / FOLDER).resolve(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, items: Mapping[str, Any], config: Any) -> None:
        """Starts to save; the arrays are copied first, so the caller may go on and donate them."""
        saved = {name: ocp.args.StandardSave(_one_copy(tree)) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**saved, config=ocp.args.JsonSave(config)))

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """The items named in `like`, placed as its arrays; raises ValueError if their shapes differ."""
        for name, tree in like.items():
            _check_shapes(Path(self._manager.directory) / str(step) / name, f"checkpoint {step}", name, tree)
        wanted = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        return {name: found[name] for name in like}


def save_snapshot(workdir: str | Path, step: int, trees: Mapping[str, Any]) -> None:
    """Saves {name: pytree of arrays} of a step for good; all of it is on disk when this returns."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(Path(workdir, SNAPSHOTS, str(step)).resolve(), _one_copy(dict(trees)), force=True)


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


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)


def find(ckpt: str | Path, step: int | None = None) -> tuple[Path, int]:
    """The run's directory and the step to use, the newest by default; raises FileNotFoundError or ValueError."""
    workdir = Path(ckpt)
    if not workdir.exists():
        raise FileNotFoundError(f"{workdir} does not exist: give the directory of a run, such as runs/digits")
    found = steps(workdir)
    if not found:
        raise FileNotFoundError(f"{workdir} holds no checkpoint ({FOLDER}/STEP): give the directory of a run")
    if step is not None and step not in found:
        raise ValueError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    return workdir, found[-1] if step is None else step


def steps(workdir: str | Path, folder: str = FOLDER) -> list[int]:
    """The steps saved whole in a run's directory, rising; those of its snapshots with `folder=SNAPSHOTS`."""
    return sorted(int(path.name) for path in (Path(workdir) / folder).glob("*") if path.name.isdigit())


def config_file(workdir: str | Path, step: int) -> Path:
    """Where the config saved with a step lies: plain JSON, readable without a device."""
    return Path(workdir, FOLDER, str(step), "config", "metadata")
