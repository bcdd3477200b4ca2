"""Open what `--ckpt` names: a run, a model in the diffusers layout, or a PyTorch state dict."""

from collections.abc import Callable
from functools import partial
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
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that the run was trained on, if its data has any."""
        names = saved_steps.data_at(self.folder, self.step).get("classes")
        return None if names is None else tuple(names)

    @property
    def output_folder(self) -> Path:
        """The default folder for samples: the run's directory."""
        return self.folder


class PretrainedSource(NamedTuple):
    """A model in the diffusers layout or in a PyTorch file, with its spec."""

    spec: ModelSpec
    read_params: Callable[[], Params]
    output_folder: Path = Path()
    classes: tuple[str, ...] | None = None

    def params(self, weights: str) -> Params:
        """Read the parameters. Raise ValueError unless `weights` is the default."""
        check(
            weights == DEFAULT_WEIGHTS,
            "A pretrained model has one set of weights: leave out --weights.",
        )
        return self.read_params()


Source = RunSource | PretrainedSource


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
        spec, params = conv_unet_weights.load_conv_unet(path)
        return PretrainedSource(spec, lambda: params)
    if path.is_dir() and not pipeline_folder.looks_like_diffusers(path):
        raise FileNotFoundError(
            f"Directory {ckpt} holds neither {saved_steps.FOLDER} nor {pipeline_folder.INDEX}: "
            f"give {ACCEPTED}."
        )
    spec = pipeline_folder.read_spec(pipeline_folder.locate_folder(ckpt))
    return PretrainedSource(spec, partial(pipeline_folder.read_params, ckpt, spec))


def open_run(ckpt: str, step: int | None = None) -> RunSource:
    """Open a checkpoint of the run at `ckpt`, by default the newest."""
    folder, step = saved_steps.resolve_checkpoint(ckpt, step)
    return RunSource(folder, step, directory.load_config(folder, step))
