"""Open what `--ckpt` names: a run, a model in the diffusers layout, or a PyTorch state dict."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ddpm_jax.config import Config, RunConfig
from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.errors import check
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params
from ddpm_jax.pretrained import conv_unet_weights, pipeline_folder
from ddpm_jax.pretrained.own_settings import read_own_settings
from ddpm_jax.pretrained.stable_diffusion import is_text_to_image
from ddpm_jax.runs import directory, saved_steps
from ddpm_jax.runs.provenance import check_trained_with, weights_hash
from ddpm_jax.runs.saved_steps import Step
from ddpm_jax.runs.text_folder import read_text_params, read_text_spec
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS, load_params
from ddpm_jax.settings_json import to_json
from ddpm_jax.training.lora import merge_lora

ACCEPTED = (
    "a run such as runs/digits, a network of the package such as digits, a folder or hub "
    "repository owner/name in the diffusers layout, or a state dict of the ConvBlock U-Net such "
    "as CIFAR_model.pt"
)
IGNORED_MODEL_FIELDS = {"image_size", "dropout", "init_scheme", "augmentation_probability"}
"""Fields of a network that may differ, because its weights fit any value."""
MISSING = "The option --ckpt is missing: give the directory of a run, such as --ckpt runs/digits."


class RunSource(NamedTuple):
    """A checkpoint of a run, with the run's config."""

    folder: Path
    step: int
    config: RunConfig

    def params(self, weights: str) -> Params:
        """Load the parameters as `weights.load_params` does, and merge a LoRA with its base.

        Raise ValueError, FileNotFoundError or OSError if the base is not there or has changed.
        """
        trained = load_params(self.config, self.folder, self.step, weights)
        if not self.trains_lora:
            return trained
        base = base_params(self.config)
        place = str(self.config.training.init_from)
        check_trained_with(self.folder, self.step, "base", weights_hash(base), place)
        return merge_lora(base, trained, self.config.lora.scale)

    @property
    def trains_lora(self) -> bool:
        """Whether the run trains a LoRA on frozen weights."""
        return lora_base(self.config) is not None

    @property
    def spec(self) -> ModelSpec:
        """The config of the run; `Config` is a subclass of `ModelSpec`.

        Raise ValueError for the run of an autoencoder.
        """
        if not isinstance(self.config, Config):
            raise ValueError(
                f"{self.folder} is the run of an autoencoder, which does not denoise: give the run "
                "that was trained on its latents."
            )
        return self.config

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that the run was trained on, if its data has any."""
        names = saved_steps.data_at(self.folder, self.step).get("classes")
        return None if names is None else tuple(names)

    @property
    def values(self) -> Levels:
        """The numbers that inputs and outputs of the network stand for."""
        return saved_steps.values_of(saved_steps.data_at(self.folder, self.step))

    @property
    def condition_values(self) -> Levels:
        """The numbers that the conditions of the network stand for."""
        record = saved_steps.data_at(self.folder, self.step)
        return saved_steps.values_of(record, "condition_values")

    @property
    def shown_channels(self) -> tuple[int, ...]:
        """The channels that pictures show; empty for all."""
        return self.config.log.channels

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
    values: Levels = LEVELS
    condition_values: Levels = LEVELS
    shown_channels: tuple[int, ...] = ()

    def params(self, weights: str) -> Params:
        """Read the parameters. Raise ValueError unless `weights` is the default."""
        check(
            weights == DEFAULT_WEIGHTS,
            "A pretrained model has one set of weights: leave out --weights.",
        )
        return self.read_params()


Source = RunSource | PretrainedSource


def open_checkpoint(ckpt: str, step: Step | None = None) -> Source:
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
        hidden = ckpt in pipeline_folder.shipped_networks()
        raise FileNotFoundError(
            f"Directory {ckpt} holds neither {saved_steps.FOLDER} nor {pipeline_folder.INDEX}"
            f"{', and hides the network of the package of this name' if hidden else ''}: "
            f"give {ACCEPTED}."
        )
    folder = pipeline_folder.locate_folder(ckpt)
    if is_text_to_image(folder):
        return PretrainedSource(read_text_spec(folder), partial(read_text_params, ckpt))
    spec = pipeline_folder.read_spec(folder)
    own = read_own_settings(folder)
    return PretrainedSource(
        spec,
        partial(pipeline_folder.read_params, ckpt, spec),
        classes=own.classes,
        values=own.values,
    )


def lora_base(config: RunConfig) -> str | None:
    """The origin of the frozen weights under a LoRA; None if all parameters are trained.

    Raise ValueError if the recipe has a LoRA and no such weights.
    """
    if not config.lora.rank:
        return None
    check(
        config.training.init_from is not None,
        "A LoRA needs a trained network: give --init-from, or leave out --lora.rank.",
    )
    return config.training.init_from


def base_params(config: RunConfig) -> Params:
    """The parameters of `training.init_from`.

    Raise ValueError if that model has another network than the config. Also raise as
    `open_checkpoint` does.
    """
    ckpt = str(config.training.init_from)
    source = open_checkpoint(ckpt)
    check_same_network(config, source)
    return source.params(DEFAULT_WEIGHTS)


def check_same_network(config: RunConfig, source: Source) -> None:
    """Raise ValueError if the weights of `training.init_from` do not fit the config's network."""
    ours = to_json(config.model)
    theirs = to_json(source.spec.model)
    ignored = IGNORED_MODEL_FIELDS
    if source.spec.has_autoencoder:
        # Hidden captions are the empty one: they need no parameters.
        ignored = ignored | {"label_dropout"}
    names = {*ours, *theirs} - ignored
    different = sorted(name for name in names if ours.get(name) != theirs.get(name))
    check(
        not different,
        f"The network of {config.training.init_from} differs from the recipe's in "
        f"model.{', model.'.join(different)}: leave out these settings.",
    )


def open_run(ckpt: str, step: Step | None = None) -> RunSource:
    """Open a checkpoint of the run at `ckpt`, by default the newest."""
    folder, step = saved_steps.resolve_checkpoint(ckpt, step)
    return RunSource(folder, step, directory.load_config(folder, step))
