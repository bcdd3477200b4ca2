"""What `--ckpt` names: a run, or a network in the diffusers layout."""

from pathlib import Path
from typing import NamedTuple

from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.models import Params
from ddpm_jax.pretrained import pipeline_folder
from ddpm_jax.runs import directory
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS, load_params

ANY = (
    "a run such as runs/digits, or a folder or hub repository owner/name in the layout of diffusers"
)
MISSING = "--ckpt is missing: give the directory of a run, such as --ckpt runs/digits"


class RunSource(NamedTuple):
    """A run's directory, one of its checkpoints, and its recipe."""

    folder: Path
    step: int
    config: Config

    def params(self, weights: str) -> Params:
        """The parameters, as `weights.load_params` does."""
        return load_params(self.config, self.folder, self.step, weights)

    @property
    def recipe(self) -> Recipe:
        """The config, of which the recipe is a part."""
        return self.config

    @property
    def pictures(self) -> Path:
        """Where pictures go unless told otherwise."""
        return self.folder


class DiffusersSource(NamedTuple):
    """A folder or repository in the layout of diffusers and its recipe."""

    ckpt: str
    recipe: Recipe
    pictures: Path = Path()

    def params(self, weights: str) -> Params:
        """The parameters; raises ValueError for another name of weights than the default."""
        check(
            weights == DEFAULT_WEIGHTS,
            "a net in the layout of diffusers has one set of weights: leave --weights out",
        )
        return pipeline_folder.read_params(self.ckpt, self.recipe)


def open_any(ckpt: str, step: int | None = None) -> RunSource | DiffusersSource:
    """The run at `ckpt`, as `open_run`, or else the net in the layout of diffusers, there or on the hub.

    Raises FileNotFoundError, ValueError or OSError.
    """
    path = Path(ckpt)
    if (path / saved_steps.FOLDER).is_dir():
        return open_run(ckpt, step)
    check(step is None, f"--checkpoint names a step of a run, which {ckpt} is not: leave it out")
    if path.is_dir() and not pipeline_folder.looks_like_diffusers(path):
        missing = f"neither {saved_steps.FOLDER} nor {pipeline_folder.INDEX}"
        raise FileNotFoundError(f"{ckpt} holds {missing}: give {ANY}")
    return DiffusersSource(ckpt, pipeline_folder.read_recipe(pipeline_folder.locate_folder(ckpt)))


def open_run(ckpt: str, step: int | None = None) -> RunSource:
    """The run at `ckpt`, at its newest checkpoint if no step is named."""
    folder, step = saved_steps.resolve_checkpoint(ckpt, step)
    return RunSource(folder, step, directory.load_config(folder, step))
