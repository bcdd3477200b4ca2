"""Which steps lie in a run's directory and which of them are whole; needs neither Orbax nor a device."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ddpm_jax.files import free_name
from ddpm_jax.runs import manifest

FOLDER = "checkpoints"
SNAPSHOTS = "snapshots"
DAMAGED, ABANDONED = ".damaged", ".abandoned"


def resolve_checkpoint(ckpt: str | Path, step: int | None = None) -> tuple[Path, int]:
    """The run's directory and the step to use, by default the newest that is whole.

    A damaged one that is passed over is named on stderr. Raises FileNotFoundError or ValueError.
    """
    workdir = Path(ckpt)
    if not workdir.exists():
        raise FileNotFoundError(
            f"{workdir} does not exist: give the directory of a run, such as runs/digits"
        )
    found = steps(workdir)
    if not found:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint ({FOLDER}/STEP): give the directory of a run"
        )
    if step is None:
        return workdir, newest(workdir)
    if step not in found:
        raise ValueError(
            f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    if what := find_corruption(workdir, step):
        raise ValueError(
            f"checkpoint {step} of {workdir} is damaged ({what}): use another of {found}"
        )
    return workdir, step


def newest(workdir: str | Path) -> int:
    """The newest step that is whole, 0 where none was saved; each damaged one above it is named on stderr.

    Raises ValueError where all are damaged.
    """
    if not steps(workdir):
        return 0
    for step in valid_steps(workdir):
        return step
    raise ValueError(
        f"{workdir} holds no whole checkpoint: put a copy of one back, or --overwrite the run"
    )


def valid_steps(workdir: str | Path, folder: str = FOLDER) -> Iterator[int]:
    """The steps without damage, the newest first; each damaged one is named on stderr when it is come to."""
    for step in reversed(steps(workdir, folder)):
        if what := find_corruption(workdir, step, folder):
            print(
                f"{Path(workdir, folder, str(step))} is damaged and left out: {what}",
                file=sys.stderr,
            )
        else:
            yield step


def find_corruption(workdir: str | Path, step: int, folder: str = FOLDER) -> str | None:
    """What is wrong with a step, None if every file of it is as it was saved."""
    return manifest.find_corruption(Path(workdir, folder, str(step)))


def quarantine(workdir: str | Path, after: int, mark: str = DAMAGED) -> None:
    """Gives the steps above one another name, so that they can be saved again; their snapshots go."""
    for step in reversed(steps(workdir)):
        if step > after:
            path = Path(workdir, FOLDER, str(step))
            path.rename(free_name(path.with_suffix(mark)))
    for step in steps(workdir, SNAPSHOTS):
        if step > after:
            shutil.rmtree(Path(workdir, SNAPSHOTS, str(step)))


def steps(workdir: str | Path, folder: str = FOLDER) -> list[int]:
    """The steps saved in a run's directory, rising; those of its snapshots with `folder=SNAPSHOTS`."""
    return sorted(
        int(path.name) for path in (Path(workdir) / folder).glob("*") if path.name.isdigit()
    )


def num_images_at(workdir: str | Path, step: int) -> int | None:
    """How many images a run was trained on up to a step, None where that was not noted."""
    path = Path(workdir, FOLDER, str(step), "data", "metadata")
    return json.loads(path.read_text())["images"] if path.exists() else None


def config_file(workdir: str | Path, step: int) -> Path:
    """Where the config saved with a step lies: plain JSON, readable without a device."""
    return Path(workdir, FOLDER, str(step), "config", "metadata")
