"""Open what `--ckpt` names: a run, a model in the diffusers layout, or a PyTorch state dict."""

from pathlib import Path
from typing import NamedTuple

from ddpm_jax.config import Config
from ddpm_jax.errors import check
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params
from ddpm_jax.pretrained import conv_unet_weights, pipeline_folder
from ddpm_jax.runs import directory, saved_steps
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS, load_params

ACCEPTED = (
    "a run such as runs/digits, a folder or hub repository owner/name in the diffusers layout, "
    "or a state dict of the ConvBlock U-Net such as CIFAR_model.pt"
)
MISSING = "The option --ckpt is missing: give the directory of a run, such as --ckpt runs/digits."


class RunSource(NamedTuple):
    """A checkpoint of a run, with the run's config."""

    folder: Path
    step: int
    config: Config

    def params(self, weights: str) -> Params:
        """Load the parameters as `weights.load_params` does."""
        return load_params(self.config, self.folder, self.step, weights)

    @property
    def spec(self) -> ModelSpec:
        """The config of the run; `Config` is a subclass of `ModelSpec`."""
        return self.config

    @property
    def output_folder(self) -> Path:
        """The default folder for samples: the run's directory."""
        return self.folder


class DiffusersSource(NamedTuple):
    """A model in the diffusers layout, in a folder or hub repository, with its spec."""

    ckpt: str
    spec: ModelSpec
    output_folder: Path = Path()

    def params(self, weights: str) -> Params:
        """Load the parameters. Raise ValueError unless `weights` is the default."""
        check(
            weights == DEFAULT_WEIGHTS,
            "A model in the diffusers layout has one set of weights: leave out --weights.",
        )
        return pipeline_folder.read_params(self.ckpt, self.spec)


class ConvUNetSource(NamedTuple):
    """A ConvBlock U-Net from a .pt or .pth file of PyTorch, with the spec of its project."""

    spec: ModelSpec
    weights: Params
    output_folder: Path = Path()

    def params(self, weights: str) -> Params:
        """Return the parameters. Raise ValueError unless `weights` is the default."""
        check(
            weights == DEFAULT_WEIGHTS,
            "A PyTorch file has one set of weights: leave out --weights.",
        )
        return self.weights


Source = RunSource | DiffusersSource | ConvUNetSource


def open_checkpoint(ckpt: str, step: int | None = None) -> Source:
    """Open a run as `open_run` does, a PyTorch file, or a diffusers model on disk or on the hub.

    Raise FileNotFoundError, ValueError or OSError.
    """
    path = Path(ckpt)
    if (path / saved_steps.FOLDER).is_dir():
        return open_run(ckpt, step)
    check(
        step is None,
        f"The option --checkpoint needs a run, and {ckpt} is not one: leave out --checkpoint.",
    )
    if conv_unet_weights.is_torch_file(ckpt):
        return ConvUNetSource(*conv_unet_weights.load_conv_unet(path))
    if path.is_dir() and not pipeline_folder.looks_like_diffusers(path):
        raise FileNotFoundError(
            f"Directory {ckpt} holds neither {saved_steps.FOLDER} nor {pipeline_folder.INDEX}: "
            f"give {ACCEPTED}."
        )
    return DiffusersSource(ckpt, pipeline_folder.read_spec(pipeline_folder.locate_folder(ckpt)))


def open_run(ckpt: str, step: int | None = None) -> RunSource:
    """Open a checkpoint of the run at `ckpt`, by default the newest."""
    folder, step = saved_steps.resolve_checkpoint(ckpt, step)
    return RunSource(folder, step, directory.load_config(folder, step))
