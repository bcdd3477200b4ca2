"""Models in the diffusers layout: a network, its scheduler, and model_index.json."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.data.values import LEVELS, Levels
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import build_sampler
from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained import hub, scheduler_config, unet_folder
from ddpm_jax.pretrained.hub import INDEX, OWN_SETTINGS
from ddpm_jax.pretrained.json_settings import VERSION
from ddpm_jax.pretrained.own_settings import (
    FILE_OPTION,
    OwnSettings,
    read_own_settings,
    write_own_settings,
)
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.pretrained.unet_config import CLASS, unet_to_config
from ddpm_jax.pretrained.untrusted_files import inside, read_json, write_json
from ddpm_jax.pretrained.weight_names import to_state_dict
from ddpm_jax.samplers import Sampler

PIPELINE = "DDPMPipeline"
PARTS = {"unet", "scheduler"}
NETS = Path(__file__).parents[1] / "nets"
"""The folder of the trained networks that the package holds."""


class Pretrained(NamedTuple):
    """A network with its parameters, its training noise schedule, and its sampler.

    `model.apply(params, xt, t)` is the network's output, NHWC. `spec` describes everything but
    the parameters. `classes` and `values` are those of a run that this library exported.
    """

    model: UNet
    params: Params
    schedule: NoiseSchedule
    sampler: Sampler
    spec: ModelSpec
    classes: tuple[str, ...] | None = None
    values: Levels = LEVELS


def load_pretrained(
    path_or_repo: str | Path,
    *,
    scheduler: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    image_size: ImageSize | None = None,
) -> Pretrained:
    """Load a model in the diffusers layout from a folder, or from a hub repository owner/name.

    "digits" is a network of this package. A folder takes precedence over both. `scheduler` names a
    scheduler, such as UniPCMultistepScheduler, to read the scheduler's JSON as that one would.
    `variant` names the weights, such as "fp16"; `revision` is a branch, tag or commit of the
    repository;
    `image_size` is used if the network's config has none.
    Raise FileNotFoundError, ValueError, ImportError or OSError.
    """
    folder = locate_folder(path_or_repo, revision)
    spec = read_spec(folder, scheduler, image_size)
    own = read_own_settings(folder)
    params = read_params(path_or_repo, spec, variant, revision)
    assert isinstance(spec.model, UNet)
    sampler = build_sampler(spec.objective, spec.sampling)
    schedule = spec.objective.noise_schedule
    return Pretrained(spec.model, params, schedule, sampler, spec, own.classes, own.values)


def save_pretrained(
    spec: ModelSpec,
    params: Params,
    folder: str | Path,
    *,
    classes: tuple[str, ...] | None = None,
    values: Levels = LEVELS,
    for_pipeline: bool = False,
) -> str:
    """Write a folder for `load_pretrained`, and for `DDPMPipeline.from_pretrained` of diffusers.

    Return the name of its scheduler: the one that steps as the spec's sampler does, or else
    DDPMScheduler. `for_pipeline` allows only schedulers that DDPMPipeline can call. The sampling of
    the spec, `classes` and `values` are in a file that diffusers ignores.
    Raise ValueError if diffusers cannot represent the model.
    """
    folder = Path(folder)
    model, objective = check_exportable(spec)
    scheduler = scheduler_config.find_scheduler(objective, spec.sampling, for_pipeline)
    # The config of the network comes last, so that an interrupted save leaves nothing that opens.
    net_folder = folder / "unet"
    net_config = unet_to_config(model)
    tensors = to_state_dict(model, params)
    unet_folder.remove_config(net_folder)
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler_path = folder / "scheduler" / scheduler_config.NAME
    write_json(scheduler_path, scheduler | {"_diffusers_version": VERSION})
    parts = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", scheduler["_class_name"]]}
    own = OwnSettings(
        # A file of this machine does not belong in the folder.
        sampling=None if FILE_OPTION in spec.sampling.options else spec.sampling,
        steps=spec.sampling.steps,
        guidance_scale=spec.sampling.guidance_scale,
        label_dropout=model.label_dropout or None,
        classes=classes,
        values=values,
    )
    write_own_settings(folder, own)
    write_json(folder / INDEX, {"_class_name": PIPELINE, "_diffusers_version": VERSION, **parts})
    unet_folder.write_net(net_folder, net_config, tensors)
    return scheduler["_class_name"]


def check_exportable(spec: ModelSpec) -> tuple[UNet, Objective]:
    """The model and objective of a spec. Raise ValueError if diffusers cannot represent them."""
    model = spec.model
    objective = spec.objective
    if not isinstance(model, UNet):
        name = type(model).__name__
        raise ValueError(f"{name} cannot be written in the diffusers layout: only UNet can.")
    unet_to_config(model)
    scheduler_config.find_scheduler(objective, spec.sampling)
    return model, objective


def locate_folder(
    path_or_repo: str | Path,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = False,
) -> Path:
    """The folder at a path, of a network of this package, or of a repository in the hub's cache.

    Download the JSON files of a repository and, with `weights`, its weights of the variant.
    Raise FileNotFoundError, ValueError, ImportError or OSError.
    """
    path = Path(path_or_repo)
    shipped = shipped_networks()
    check(
        revision is None or not (path.exists() or str(path_or_repo) in shipped),
        f"{path_or_repo} is on this machine and has no revisions: leave revision out, or rename "
        "the folder to open the repository of this name.",
    )
    if path.exists():
        if not path.is_dir():
            raise ValueError(
                f"{path} is a file: give its folder, or for a LoRA the network that it changes."
            )
        check(
            not (path / "checkpoints").is_dir() or (path / INDEX).exists(),
            f"{path} is the directory of a run: draw from it by sample.py, or export it by "
            f"python -m ddpm_jax.export --ckpt {path} --out FOLDER.",
        )
        return path
    if str(path_or_repo) in shipped:
        return shipped[str(path_or_repo)]
    if not hub.is_repository(str(path_or_repo)):
        raise FileNotFoundError(
            f"{path_or_repo} is neither a folder nor a network of this package "
            f"({', '.join(shipped)}) nor the name of a hub repository: give a folder that exists, "
            "one of these names, or owner/name."
        )
    try:
        return hub.download(str(path_or_repo), variant=variant, revision=revision, weights=weights)
    except (OSError, ImportError) as error:
        message = f"There is no folder {path_or_repo}, so it was looked up on the hub. {error}"
        raise type(error)(message) from error


def shipped_networks() -> dict[str, Path]:
    """The folders of the networks of this package, by name."""
    return {net.name: net for net in sorted(NETS.iterdir())}


def looks_like_diffusers(folder: Path) -> bool:
    """Whether a folder has a file or folder of the diffusers layout."""
    names = (INDEX, "unet", "scheduler", scheduler_config.NAME)
    return any((folder / name).exists() for name in names)


def read_spec(
    folder: Path, scheduler: str | None = None, image_size: ImageSize | None = None
) -> ModelSpec:
    """Read the model spec from the JSON files of a folder. Needs no device."""
    index = _read_index(folder)
    model = unet_folder.read_net(_part_folder(folder, "unet"), image_size)
    path = _part_folder(folder, "scheduler") / scheduler_config.NAME
    class_name = {"_class_name": index["scheduler"][1]}
    config = read_json(inside(folder, path))
    # An index decides, as in diffusers.
    config = config | class_name if (folder / INDEX).exists() else class_name | config
    parsed = parse_scheduler(config, scheduler)
    variance_type = "learned_range" if model.learned_variance else "fixed_small"
    check(
        model.learned_variance == parsed.objective.learns_variance,
        f"The number of out_channels of {folder} does not fit its scheduler: write {path.name} of "
        f"a DDPMScheduler with variance_type {variance_type}.",
    )
    own = read_own_settings(folder)
    if own.label_dropout is not None:
        model = with_label_dropout(model, own.label_dropout)
    if scheduler is not None:
        own = dataclasses.replace(own, sampling=None)
    sampling = own.applied(parsed.sampling)
    return ModelSpec(model=model, objective=parsed.objective, sampling=sampling)


def with_label_dropout(model: UNet, label_dropout: float) -> UNet:
    """The network of a folder, whose last class stands for none. Raise ValueError without two."""
    classes = model.num_classes or 0
    check(
        classes >= 2,
        f"A network of {classes} classes has no label dropout: remove it from {OWN_SETTINGS}.",
    )
    return dataclasses.replace(model, num_classes=classes - 1, label_dropout=label_dropout)


def read_params(
    path_or_repo: str | Path,
    spec: ModelSpec,
    variant: str | None = None,
    revision: str | None = None,
) -> Params:
    """Read the parameters of a model with this spec, downloading them if needed."""
    assert isinstance(spec.model, UNet)
    folder = locate_folder(path_or_repo, revision, variant, weights=True)
    return unet_folder.read_params(_part_folder(folder, "unet"), spec.model, variant)


def _read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json, or return its defaults if there is none."""
    index = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", "DDPMScheduler"]}
    if (folder / INDEX).exists():
        index |= read_json(inside(folder, folder / INDEX))
    parts = {
        name: part
        for name, part in index.items()
        if isinstance(part, list) and part != [None, None]
    }
    unsupported = sorted(set(parts) - PARTS)
    if unsupported:
        pipeline = str(index.get("_class_name", PIPELINE))[:80]
        listed = ", ".join(unsupported)[:200]
        remedy = "only a unet and a scheduler are supported"
        if hub.TEXT_ENCODER in parts:
            remedy = "load_stable_diffusion reads pipelines with a text encoder"
        raise ValueError(f"{folder} is a {pipeline} with the parts {listed}: {remedy}.")
    valid = all(
        len(part) == 2 and all(isinstance(word, str) for word in part) for part in parts.values()
    )
    if not valid or set(parts) != PARTS:
        raise ValueError(f"{folder / INDEX} does not name a unet and a scheduler.")
    return index


def _part_folder(folder: Path, name: str) -> Path:
    """The folder of a part or, as in diffusers, the model's own folder if the part has none."""
    return inside(folder, folder / name) if (folder / name).is_dir() else folder
