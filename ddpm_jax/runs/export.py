"""The export of a run in the layout of diffusers, for its pipelines and for the hub."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_jax.config import Config
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.pretrained import hub, pipeline_folder
from ddpm_jax.runs.model_card import PICTURES, write_card
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS
from ddpm_jax.training.step import TrainState

FILES = {"README.md", *PICTURES, pipeline_folder.INDEX, "unet", "scheduler"}


def check_free(out: Path, overwrite: bool) -> None:
    """Raises ValueError where a folder cannot be written without loss of anything but an export to be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        exported = out.is_dir() and {path.name for path in out.iterdir()} <= FILES
        check(
            exported and overwrite,
            f"{out} is there already: name another --out" + ", or add --overwrite" * exported,
        )


@contextmanager
def export_to_temp(
    run: RunSource, params: Params, weights: str, name: str, beside: Path | None = None
) -> Iterator[Path]:
    """A folder with the export of a run, in a temporary one, which may be beside where it is to go."""
    with tempfile.TemporaryDirectory(prefix=".ddpm_jax-", dir=beside) as temporary:
        folder = Path(temporary) / "new"
        scheduler = pipeline_folder.save_pretrained(run.recipe, params, folder, for_pipeline=True)
        write_card(folder, run, weights, name, scheduler)
        yield folder


def swap_folder(out: Path, folder: Path) -> None:
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


def prepare_upload(repo: str, private: bool, config: Config) -> None:
    """Make the repository unless it is there.

    Raises ValueError, ImportError or OSError if diffusers cannot hold the network or the repository cannot be written
    to.
    """
    pipeline_folder.check_possible(config)
    if hosts.is_primary():
        hub.prepare(repo, private)


def make_uploader(
    repo: str, private: bool, config: Config, folder: Path
) -> Callable[[int, TrainState], None]:
    """The function (step, state) that uploads a run's averaged parameters while it trains.

    An upload that fails is reported on stderr, and training goes on.
    """

    def upload(step: int, state: TrainState) -> None:
        params = parallel.gather_to_host(state.ema_params[DEFAULT_WEIGHTS])
        if hosts.is_primary():
            _upload(repo, private, RunSource(folder, step, config), params)

    return upload


def _upload(repo: str, private: bool, run: RunSource, params: Params) -> None:
    try:
        with export_to_temp(run, params, DEFAULT_WEIGHTS, repo) as folder:
            hub.upload(folder, repo, private=private, message=f"Step {run.step}")
    except Exception as error:  # whatever it is, the training is worth more
        message = " ".join(str(error).split())
        print(f"step {run.step} was not uploaded, and training goes on: {message}", file=sys.stderr)
