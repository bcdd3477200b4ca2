"""A run as a model in the layout of diffusers, for its pipelines and for the hub.

    python -m ddpm_jax.export --ckpt runs/digits --out my_pipeline
    python -m ddpm_jax.export --ckpt runs/digits --push owner/name --private

`diffusers.DDPMPipeline.from_pretrained("my_pipeline")` opens it, and `sample.py --ckpt my_pipeline`.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ddpm_jax import command_line, hosts, on_run
from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.model_card import PICTURES, write_card
from ddpm_jax.models import Params
from ddpm_jax.on_run import OnRun, TrainedRun
from ddpm_jax.pretrained import folders, hub

FILES = {"README.md", *PICTURES, folders.INDEX, "unet", "scheduler"}
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
    folders.check_possible(run.recipe)
    if wanted.push is not None:
        hub.prepare(wanted.push, wanted.private)
    if wanted.out is not None:
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
    beside = None if wanted.out is None else wanted.out.parent
    with exported(run, run.params(wanted.weights), wanted.weights, wanted.push or str(wanted.out), beside) as folder:
        if wanted.push is not None:
            print(hub.upload(folder, wanted.push, private=wanted.private, message=f"Step {run.step} of a run"))
        if wanted.out is not None:
            replace(wanted.out, folder)
            print(wanted.out)


def check_free(out: Path, overwrite: bool) -> None:
    """Raises ValueError where a folder cannot be written without loss of anything but an export to be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        exported = out.is_dir() and {path.name for path in out.iterdir()} <= FILES
        check(exported and overwrite, f"{out} is there already: name another --out" + ", or add --overwrite" * exported)


@contextmanager
def exported(run: TrainedRun, params: Params, weights: str, name: str, beside: Path | None = None) -> Iterator[Path]:
    """A folder with the export of a run, in a temporary one, which may be beside where it is to go."""
    with tempfile.TemporaryDirectory(prefix=".ddpm_jax-", dir=beside) as temporary:
        folder = Path(temporary) / "new"
        scheduler = folders.save_pretrained(run.recipe, params, folder, for_pipeline=True)
        write_card(folder, run, weights, name, scheduler)
        yield folder


def replace(out: Path, folder: Path) -> None:
    """Puts a folder, on the same disk, in the place of `out`: that is what it was, or what it is to be."""
    old = folder.with_name("old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def publisher(repo: str | None, private: bool, config: Config) -> Upload | None:
    """What uploads a run while it trains, if anything does; an upload that goes wrong is told, and training goes on.

    Raises ValueError, ImportError or OSError, before any training, if the net cannot be written or the repository not
    written to.
    """
    if repo is None:
        check(not private, "--private is for --push")
        return None
    folders.check_possible(config)
    if hosts.is_first():
        hub.prepare(repo, private)
    return partial(_publish, repo, private)


def _publish(repo: str, private: bool, run: TrainedRun, params: Params) -> None:
    try:
        with exported(run, params, "ema", repo) as folder:
            hub.upload(folder, repo, private=private, message=f"Step {run.step}")
    except Exception as error:  # whatever it is, the training is worth more
        message = " ".join(str(error).split())
        print(f"step {run.step} was not uploaded, and training goes on: {message}", file=sys.stderr)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
