"""Stable Diffusion in the diffusers layout: its parts, read from and written to a folder."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.schedule import NoiseSchedule
from ddpm_jax.errors import check, check_choice
from ddpm_jax.generation.sampling import Sampling, build_sampler
from ddpm_jax.image_size import sides
from ddpm_jax.models import Params
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet_conditional import ConditionalUNet
from ddpm_jax.pretrained import scheduler_config
from ddpm_jax.pretrained.hub import INDEX, TEXT_ENCODER, TOKENIZER_FILES
from ddpm_jax.pretrained.json_settings import VERSION
from ddpm_jax.pretrained.latent_scheduler import (
    as_pipeline_reads,
    converted,
    parse_latent_scheduler,
)
from ddpm_jax.pretrained.own_settings import (
    FILE_OPTION,
    OwnSettings,
    read_own_settings,
    write_own_settings,
)
from ddpm_jax.pretrained.part_folder import PARTS, read_part, read_part_params, save_part
from ddpm_jax.pretrained.pipeline_folder import locate_folder
from ddpm_jax.pretrained.schedulers import SCHEDULERS
from ddpm_jax.pretrained.unet_folder import CONFIG
from ddpm_jax.pretrained.untrusted_files import brief, inside, read_json, write_json
from ddpm_jax.pretrained.weight_files import check_no_other_weights
from ddpm_jax.samplers import Sampler

INPAINTS = "StableDiffusionInpaintPipeline"
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    INPAINTS,
)
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
DTYPES = ("float32", "bfloat16", "float16")
SMALLEST_SAMPLE = 64
"""The side of latents to which diffusers raises that of networks from before its version 0.9."""
MAX_TOKENIZER_BYTES = 16 * 2**20


class StableDiffusion(NamedTuple):
    """The parts of a latent diffusion model whose condition is a text.

    `unet.apply(unet_params, xt, t, condition)` is the network's output for latents (b, h, w, c).
    """

    tokenizer_files: Mapping[str, bytes]
    """The files of the tokenizer by name (`hub.TOKENIZER_FILES`)."""
    text_encoder: ClipText
    text_params: Params
    unet: ConditionalUNet
    unet_params: Params
    autoencoder: Autoencoder
    autoencoder_params: Params
    objective: Objective
    sampling: Sampling
    scheduler: Mapping[str, Any]
    """The scheduler_config.json."""
    dtype: str = "float32"
    """The type in which the text encoder and the U-Net compute."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the training."""
        return self.objective.noise_schedule

    @property
    def sampler(self) -> Sampler:
        """The sampler of the scheduler."""
        return build_sampler(self.objective, self.sampling)

    @property
    def inpaints(self) -> bool:
        """Whether the network takes a mask and the latents of a masked image beside xt."""
        return self.unet.in_channels == 2 * self.autoencoder.latent_channels + 1


def load_stable_diffusion(
    path_or_repo: str | Path,
    *,
    scheduler: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
) -> StableDiffusion:
    """Load Stable Diffusion 1 or 2 from a folder, or from a hub repository owner/name.

    `scheduler`, `variant` and `revision` are as in `load_pretrained`. The parameters of the text
    encoder and of the U-Net are kept in `dtype`, in which they compute.
    Raise FileNotFoundError, ValueError, ImportError or OSError.
    """
    check_choice(DTYPES, dtype=dtype)
    folder = locate_folder(path_or_repo, revision, variant, weights=True)
    model = read_without_weights(folder, scheduler=scheduler, dtype=dtype)

    def read_params(part: str, net: Any, dtype: str) -> Params:
        params = read_part_params(_part_folder(folder, part), part, net, variant)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    return model._replace(
        text_params=read_params("text_encoder", model.text_encoder, dtype),
        unet_params=read_params("unet", model.unet, dtype),
        autoencoder_params=read_params("vae", model.autoencoder, "float32"),
    )


def read_without_weights(
    folder: Path, *, scheduler: str | None = None, dtype: str = "float32"
) -> StableDiffusion:
    """The parts of a folder, with no parameters. Raise ValueError if they do not fit together."""
    index = read_index(folder)
    config = read_scheduler(folder, index)
    parsed = parse_latent_scheduler(config, scheduler)
    nets = {part: read_part(_part_folder(folder, part), part) for part in PARTS}
    nets["unet"] = _with_raised_size(nets["unet"], _part_folder(folder, "unet"))
    _check_fit(nets["text_encoder"], nets["unet"], nets["vae"])
    own = read_own_settings(folder)
    if scheduler is not None:
        own = dataclasses.replace(own, sampling=None)
    return StableDiffusion(
        tokenizer_files=read_tokenizer_files(_part_folder(folder, "tokenizer")),
        text_encoder=nets["text_encoder"],
        text_params={},
        unet=nets["unet"],
        unet_params={},
        autoencoder=nets["vae"],
        autoencoder_params={},
        objective=parsed.objective,
        sampling=own.applied(parsed.sampling),
        scheduler=converted(config, parsed.name),
        dtype=dtype,
    )


def is_text_to_image(folder: Path) -> bool:
    """Whether a folder holds a pipeline with a text encoder."""
    path = folder / INDEX
    return path.exists() and TEXT_ENCODER in read_json(inside(folder, path))


def read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json. Raise ValueError for another pipeline, or if a part is missing."""
    index = read_json(inside(folder, folder / INDEX))
    name = index.get("_class_name")
    check(
        name in PIPELINES,
        f"{folder} is a {brief(name)}, which is not supported: only {', '.join(PIPELINES)} are.",
    )
    accepted: dict[str, tuple[str, ...]] = {
        "tokenizer": TOKENIZERS,
        "scheduler": tuple(SCHEDULERS),
        **{part: (form.class_name,) for part, form in PARTS.items()},
    }
    for part, classes in accepted.items():
        entry = index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
            raise ValueError(f"{folder / INDEX} names no {part}: a pipeline needs all its parts.")
        check(
            entry[1] in classes,
            f"{folder / INDEX}: the {part} {brief(entry[1])} is not supported: "
            f"it must be one of {', '.join(classes)}.",
        )
    return index


def read_scheduler(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's JSON as the pipeline of model_index.json reads it."""
    path = _part_folder(folder, "scheduler") / scheduler_config.NAME
    inpaints = index["_class_name"] == INPAINTS
    return as_pipeline_reads(read_json(inside(folder, path)), index["scheduler"][1], inpaints)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer. Raise ValueError for a file that is too large."""
    files = {}
    for name in TOKENIZER_FILES:
        path = inside(folder, folder / name)
        if path.is_file():
            size = path.stat().st_size
            check(
                size <= MAX_TOKENIZER_BYTES,
                f"{path} has {size:,} bytes: the limit is {MAX_TOKENIZER_BYTES:,} bytes.",
            )
            files[name] = path.read_bytes()
    return files


def save_stable_diffusion(
    model: StableDiffusion, folder: str | Path, dtype: str = "float32"
) -> None:
    """Write a folder that `load_stable_diffusion` and diffusers can open.

    It holds the networks in `dtype`, the tokenizer, the JSON of the model's scheduler and, for this
    library, the model's sampling. An interrupted call leaves a folder that nothing opens.
    Raise ValueError if the folder holds other weights, and if diffusers lacks the objective.
    """
    check(
        bool(model.scheduler),
        "diffusers lacks the noise schedule or target of this model, so it cannot be written in "
        "the diffusers layout: keep the directory of its run.",
    )
    folder = Path(folder)
    nets = {
        "unet": (model.unet, model.unet_params),
        "vae": (model.autoencoder, model.autoencoder_params),
        "text_encoder": (model.text_encoder, model.text_params),
    }
    for part in nets:
        check_no_other_weights(folder / part, PARTS[part].files)
    # The index is written last.
    (folder / INDEX).unlink(missing_ok=True)
    for part, (net, params) in nets.items():
        in_dtype = jax.tree.map(lambda x: x.astype(dtype), params)
        save_part(folder / part, part, net, in_dtype)
    for part in ("tokenizer", "scheduler"):
        (folder / part).mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        path = folder / "tokenizer" / name
        if name in model.tokenizer_files:
            path.write_bytes(model.tokenizer_files[name])
        else:
            path.unlink(missing_ok=True)
    write_json(folder / "scheduler" / scheduler_config.NAME, dict(model.scheduler))
    sampling = model.sampling
    own = OwnSettings(
        # A file of this machine does not belong in the folder.
        sampling=None if FILE_OPTION in sampling.options else sampling,
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
    )
    write_own_settings(folder, own)
    write_json(folder / INDEX, _index(model))


def _index(model: StableDiffusion) -> dict[str, Any]:
    """The model_index.json. It names no safety checker."""
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    return {
        "_class_name": INPAINTS if model.inpaints else PIPELINES[0],
        "_diffusers_version": VERSION,
        "requires_safety_checker": False,
        "tokenizer": ["transformers", TOKENIZERS[0]],
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        **{name: [form.library, form.class_name] for name, form in PARTS.items()},
        **{name: [None, None] for name in absent},
    }


def _part_folder(folder: Path, part: str) -> Path:
    """The folder of a part. Raise FileNotFoundError if it is missing."""
    path = folder / part
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} has no folder {part}: a pipeline needs all its parts.")
    return inside(folder, path)


def _with_raised_size(unet: ConditionalUNet, folder: Path) -> ConditionalUNet:
    """The network, with the size that diffusers' pipelines give to those of old versions."""
    config = read_json(inside(folder, folder / CONFIG))
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    is_old = version is not None and tuple(map(int, version.groups())) < (0, 9)
    if is_old and max(sides(unet.sample_size)) < SMALLEST_SAMPLE:
        return dataclasses.replace(unet, sample_size=SMALLEST_SAMPLE)
    return unet


def _check_fit(text_encoder: ClipText, unet: ConditionalUNet, autoencoder: Autoencoder) -> None:
    """Raise ValueError unless the parts fit each other."""
    check(
        text_encoder.width == unet.context_dim,
        f"The text encoder gives states of {text_encoder.width} channels, "
        f"but the unet takes {unet.context_dim}: take both from one model.",
    )
    channels = autoencoder.latent_channels
    check(
        unet.out_channels == channels and unet.in_channels in (channels, 2 * channels + 1),
        f"The unet takes {unet.in_channels} channels and gives {unet.out_channels}, but latents "
        f"have {channels}: it must take {channels}, or {2 * channels + 1} to inpaint.",
    )
