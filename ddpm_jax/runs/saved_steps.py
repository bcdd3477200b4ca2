"""The saved steps of a run: list them, find and set aside the corrupt ones, read their records.

Needs neither Orbax nor a device.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ddpm_jax.data.values import LEVELS, Levels, ScaledValues
from ddpm_jax.errors import check
from ddpm_jax.files import check_name, free_name
from ddpm_jax.runs import manifest
from ddpm_jax.settings_json import from_json

FOLDER = "checkpoints"
SNAPSHOTS = "snapshots"
CORRUPT_SUFFIX = ".corrupt"
ABANDONED_SUFFIX = ".abandoned"


Step = int | Literal["best"]
"""A saved step, or the best one of those that the run has measured."""


def resolve_checkpoint(ckpt: str | Path, step: Step | None = None) -> tuple[Path, int]:
    """The run's directory and the step to use, by default the newest that is not corrupt.

    Corrupt steps that are skipped are named on stderr. Raise FileNotFoundError if there is no
    checkpoint, and ValueError if the named step is missing or no usable one is left.
    """
    workdir = Path(ckpt)
    check_name(workdir)
    if not workdir.exists():
        raise FileNotFoundError(
            f"There is no directory {workdir}: give the directory of a run, such as runs/digits, "
            "not the name of a network."
        )
    saved = steps(workdir)
    if not saved:
        raise FileNotFoundError(
            f"Directory {workdir} holds no checkpoint ({FOLDER}/STEP): give the directory of a run."
        )
    if step is None:
        return workdir, newest(workdir)
    if step == "best":
        step = best_step(workdir, valid_steps(workdir))
        check(
            step is not None,
            f"Run {workdir} has measured no checkpoint: name a step, or train with "
            "--evaluation.every.",
        )
    choices = ", ".join(map(str, saved))
    if step not in saved:
        raise ValueError(
            f"Run {workdir} has no checkpoint of step {step}: choose one of {choices}."
        )
    if corruption := find_corruption(workdir, step):
        raise ValueError(
            f"Checkpoint {step} of {workdir} is corrupt ({corruption}): "
            f"choose another one of {choices}."
        )
    return workdir, step


def newest(workdir: str | Path) -> int:
    """The newest step that is not corrupt, or 0 if none was saved.

    Corrupt steps that are skipped are named on stderr. Raise ValueError if all are corrupt.
    """
    if not steps(workdir):
        return 0
    for step in valid_steps(workdir):
        return step
    raise ValueError(
        f"All checkpoints in {workdir} are corrupt: "
        "restore a backup of one, or start the run afresh with --overwrite."
    )


def valid_steps(workdir: str | Path, folder: str = FOLDER) -> Iterator[int]:
    """Yield the steps that are not corrupt, newest first, and name each corrupt one on stderr.

    A step is checked only when the iteration reaches it.
    """
    for step in reversed(steps(workdir, folder)):
        if corruption := find_corruption(workdir, step, folder):
            path = Path(workdir, folder, str(step))
            print(f"Skipping {path}, which is corrupt: {corruption}.", file=sys.stderr)
        else:
            yield step


def find_corruption(workdir: str | Path, step: int, folder: str = FOLDER) -> str | None:
    """Describe the first fault in the files of a step; None if they are intact."""
    return manifest.find_corruption(Path(workdir, folder, str(step)))


def quarantine(workdir: str | Path, after: int, suffix: str = CORRUPT_SUFFIX) -> None:
    """Rename the checkpoints later than a step, so that they can be saved again.

    Snapshots later than the step are deleted.
    """
    for step in reversed(steps(workdir)):
        if step > after:
            path = Path(workdir, FOLDER, str(step))
            path.rename(free_name(path.with_suffix(suffix)))
    for step in steps(workdir, SNAPSHOTS):
        if step > after:
            shutil.rmtree(Path(workdir, SNAPSHOTS, str(step)))


def steps(workdir: str | Path, folder: str = FOLDER) -> list[int]:
    """The saved steps of a run in ascending order; `folder=SNAPSHOTS` lists its snapshots."""
    paths = (Path(workdir) / folder).glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def data_at(workdir: str | Path, step: int) -> dict[str, Any]:
    """The data of a saved step: the number of `images` that it was trained on, and their `classes`.

    A run on arrays adds the scale of their `values`, one with a condition that of the
    `condition_values`, a LoRA run the hash of its `base`, a run on latents that of its
    `autoencoder`, and their `scaling_factor`. It is empty if nothing was recorded.
    """
    path = Path(workdir, FOLDER, str(step), "data", "metadata")
    return json.loads(path.read_text()) if path.exists() else {}


def values_of(record: dict[str, Any], name: str = "values") -> Levels:
    """The values of the data of a step's record: how a network's inputs stand for numbers."""
    scaled = record.get(name)
    return LEVELS if scaled is None else from_json(ScaledValues, scaled, name)


def best_step(workdir: str | Path, candidates: Iterable[int] | None = None) -> int | None:
    """The saved step whose samples had the lowest KID while training; None if none was measured.

    Considers only steps measured with the newest one's settings, and none whose record is damaged.
    """
    candidates = steps(workdir) if candidates is None else candidates
    records = {step: _evaluation_at(workdir, step) for step in candidates}
    measured = {step: record for step, record in records.items() if record is not None}
    if not measured:
        return None
    made_with = measured[max(measured)]["made_with"]
    comparable = [step for step in measured if measured[step]["made_with"] == made_with]
    return min(comparable, key=lambda step: measured[step]["kid"])


def _evaluation_at(workdir: str | Path, step: int) -> dict[str, Any] | None:
    """The evaluation of a step; None without one, or if its file is damaged."""
    try:
        record = data_at(workdir, step)["evaluation"]
        return {"kid": float(record["kid"]), "made_with": record["made_with"]}
    # A damaged file raises errors of many types.
    except Exception:
        return None


def config_file(workdir: str | Path, step: int) -> Path:
    """The file with the config saved at a step: plain JSON, readable without a device."""
    return Path(workdir, FOLDER, str(step), "config", "metadata")
