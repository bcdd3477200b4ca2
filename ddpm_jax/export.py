"""A run as a model in the layout of diffusers, for its pipelines and for the hub.

    python -m ddpm_jax.export --ckpt runs/digits --out my_pipeline
    python -m ddpm_jax.export --ckpt runs/digits --push owner/name --private

`diffusers.DDPMPipeline.from_pretrained("my_pipeline")` opens it, and `sample.py --ckpt my_pipeline`.
"""

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ddpm_jax import command_line, on_run
from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.model_card import write_card
from ddpm_jax.models import Params
from ddpm_jax.on_run import OnRun, TrainedRun
from ddpm_jax.pretrained import folders, hub

Upload = Callable[[TrainedRun, Params], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(OnRun):
    """What to write and where; `--ckpt DIR` names the run."""

    out: Path | None = None
    """The folder to write."""
    overwrite: bool = False
    """Write over an earlier export."""
    push: str | None = None
    """A repository of the hub to upload to, owner/name; made if it is not there."""
    private: bool = False
    """Make that one private."""

    def __post_init__(self):
        check(self.out is not None or self.push is not None, "say where to: --out DIR, or --push owner/name")
        check(self.push is not None or not self.private, "--private is for --push")
        if self.out is not None:
            check_free(self.out, self.overwrite)


def main(args: list[str]) -> None:
    """Writes, and uploads, what the command line says."""
    wanted, run = on_run.parse(Export, args, "python -m ddpm_jax.export")
    if wanted.push is not None:
        hub.prepare(wanted.push, wanted.private)
    with exported(run, run.params(wanted.weights), wanted.weights, wanted.push or str(wanted.out)) as folder:
        if wanted.push is not None:
            print(hub.upload(folder, wanted.push, private=wanted.private, message=f"Step {run.step} of a run"))
        if wanted.out is not None:
            replace(wanted.out, folder)
            print(wanted.out)


def check_free(out: Path, overwrite: bool) -> None:
    """Raises ValueError where a folder cannot be written without loss of anything but an export to be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        ours = (out / folders.INDEX).is_file()
        check(ours and overwrite, f"{out} is there already: name another --out" + ", or add --overwrite" * ours)


@contextmanager
def exported(run: TrainedRun, params: Params, weights: str, name: str) -> Iterator[Path]:
    """A new folder with the export of a run, whole, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ddpm_jax-") as temporary:
        folder = Path(temporary) / "export"
        folders.save_pretrained(folders.as_pretrained(run.recipe, params), folder)
        write_card(folder, run, weights, name)
        yield folder


def replace(out: Path, folder: Path) -> None:
    """Puts a copy of a folder in the place of `out`: whole, or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        shutil.copytree(folder, new := Path(beside) / "new")
        if out.exists():
            out.rename(Path(beside) / "old")
        new.rename(out)


def publisher(repo: str | None, private: bool, config: Config) -> Upload:
    """What uploads a run while it trains; where an upload goes wrong that is told, and training goes on.

    Raises ValueError or OSError, before any training, if the net cannot be written or the repository not written to.
    """
    if repo is None:
        check(not private, "--private is for --push")
        return lambda run, params: None
    folders.check_possible(config)
    hub.prepare(repo, private)
    return partial(_publish, repo)


def _publish(repo: str, run: TrainedRun, params: Params) -> None:
    try:
        with exported(run, params, "ema", repo) as folder:
            hub.upload(folder, repo, message=f"Step {run.step}")
    except OSError as error:
        print(f"step {run.step} was not uploaded, and training goes on: {error}", file=sys.stderr)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
