"""The main function of sample.py for a model with a text encoder: draw images from prompts."""

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_jax.cli import arguments
from ddpm_jax.cli.lora_options import LoraOptions
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.cli.sampling_arguments import default_sampling, parse_with_sampling
from ddpm_jax.data.pixels import to_image
from ddpm_jax.devices import memory
from ddpm_jax.errors import check
from ddpm_jax.figures import heat, image_grids
from ddpm_jax.files import check_writable, write_all
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained import hub, latent_scheduler, stable_diffusion
from ddpm_jax.pretrained.lora_files import with_lora
from ddpm_jax.pretrained.own_settings import read_own_settings
from ddpm_jax.pretrained.pipeline_folder import locate_folder, shipped_networks
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.runs.text_model import open_text_model, without_weights
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS
from ddpm_jax.text_to_image.draw import draw_images
from ddpm_jax.text_to_image.noise import NoiseKind, seed_bits
from ddpm_jax.text_to_image.prompts import check_tokenizer
from ddpm_jax.text_to_image.request import Request, read_request
from ddpm_jax.text_to_image.word_maps import PERIODS, WordMaps, check_word_maps, draw_with_maps

DEFAULT_OUT = Path("samples.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions(LoraOptions, BatchedRunOptions):
    """Draw images from prompts with Stable Diffusion or a run on latents, and any `--sampler`.

    `--prompt` gives the texts, and `--image` and `--mask` images to start from.
    """

    prompt: tuple[str, ...] = ()
    """Texts to draw."""
    prompt_file: Path | None = None
    """File with one more prompt per line."""
    negative_prompt: tuple[str, ...] = ("",)
    """Texts to keep away from: one, or one for each prompt."""
    num: int = 1
    """Images per prompt."""
    image: tuple[Path, ...] = ()
    """Images to start from, which the samples take in turn."""
    mask: tuple[Path, ...] = ()
    """Masks of the images. White is redrawn; black and what is transparent are kept."""
    strength: float | None = None
    """Fraction of the steps to run, in (0, 1]; None for 0.8, or 1 with --mask."""
    height: int | None = None
    """Height in pixels; None for the network's own, or for the image's with --image and no --mask.
    """
    width: int | None = None
    """Width in pixels; None as for the height."""
    seed: int = 0
    """Seed of all random numbers, in [0, 2**32), or in [0, 2**64) with --noise torch-*."""
    noise: NoiseKind = "jax"
    """jax: image i depends on seed and i. torch-cpu, torch-cuda: PyTorch's numbers for seed + i."""
    clip_skip: int = 0
    """Last layers of the text encoder to leave out for the prompts."""
    variant: str | None = None
    """Variant of the weights, such as fp16."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the text encoder and the U-Net compute."""
    batch_size: int = 1
    """Images per batch. Does not change the result."""
    out: tuple[Path, ...] = (DEFAULT_OUT,)
    """Files or folders: X.png is the image, or a grid of several; X.npz holds uint8 NHWC under
    `images`, and a folder gets one PNG per image."""
    attention_maps: bool = False
    """Also write X_attention.png, named after the first of --out, or for several images a folder
    X_attention: where each word acts on the image, in all steps and, of three or more, in early,
    middle and late ones."""

    def __post_init__(self):
        super().__post_init__()
        check(self.num >= 1, f"--num must be at least 1, not {self.num}.")
        image_grids.check_outputs(self.out)

    @property
    def seed_bits(self) -> int:
        return seed_bits(self.noise)

    def map_files(self, total: int) -> list[Path]:
        """The files of the attention maps of each image; none unless they are asked for.

        Raise ValueError if they would replace one of --out, or mix with older pictures.
        """
        if not self.attention_maps:
            return []
        parent = self.out[0].parent
        name = f"{self.out[0].stem}_attention"
        if total == 1:
            files = [parent / f"{name}.png"]
        else:
            folder = parent / name
            image_grids.check_unused(folder, self.out)
            image_grids.check_not_mixed(folder, total)
            files = [folder / f"{i:05d}.png" for i in range(total)]
        for file in files:
            image_grids.check_unused(file, self.out)
        return files

    def request(self) -> Request:
        """The images to draw. Raise ValueError or FileNotFoundError for options that do not fit."""
        prompts = [*self.prompt, *_read_prompts(self.prompt_file)]
        check(bool(prompts), "There is no prompt: give --prompt TEXT or --prompt-file FILE.")
        return Request(
            prompts=prompts,
            negative_prompts=self.negative_prompt,
            num_images=self.num,
            images=self.image,
            masks=self.mask,
            strength=self.strength,
            height=self.height,
            width=self.width,
            seed=self.seed,
            noise=self.noise,
            clip_skip=self.clip_skip,
        )

    def load(self, ckpt: str, run: RunSource | None) -> stable_diffusion.StableDiffusion:
        """Load the model of a run or, if `run` is None, of the pipeline `ckpt`.

        Raise ValueError for options that are for the other kind of model.
        """
        if run is not None:
            check(self.variant is None, "A run has no variants of weights: leave out --variant.")
            return open_text_model(run, run.params(self.weights), self.dtype)
        check(
            self.weights == DEFAULT_WEIGHTS and self.checkpoint is None,
            "A pretrained model has one set of weights: leave out --weights and --checkpoint.",
        )
        return stable_diffusion.load_stable_diffusion(ckpt, variant=self.variant, dtype=self.dtype)


def find_pipeline(ckpt: str) -> Path | None:
    """The folder of a pipeline with a text encoder, as `locate_folder` finds it; None if none."""
    folder = Path(ckpt)
    if not folder.exists() and (ckpt in shipped_networks() or hub.is_repository(ckpt)):
        folder = locate_folder(ckpt)
    return folder if stable_diffusion.is_text_to_image(folder) else None


def main(args: list[str], ckpt: str, sampler: str | None, source: RunSource | Path) -> None:
    """Draw images from prompts with a run on latents, or with the pipeline in a folder."""
    run = source if isinstance(source, RunSource) else None
    default = _default_sampling(source, sampler)
    prog = f"{arguments.command('sample')} --ckpt {ckpt}"
    options, sampling = parse_with_sampling(TextOptions, args, default, prog)
    request = options.request()
    map_files = options.map_files(request.total)
    image_grids.check_outputs(options.out, request.total)
    image_grids.check_paths(options.out, chain=False)
    for path in map_files:
        check_writable(path)
    loras = options.lora_files()
    options.set_up_jax(request.total)
    _check_request(source, request, sampling, options.attention_maps)
    workload = f"batches of {options.batch_size} images"
    with memory.explain_oom(workload, "lower --batch-size"), _warnings_in_one_line():
        model = options.load(ckpt, run)
        for path, scale in loras:
            model = with_lora(model, path, scale)
        maps: list[WordMaps] = []
        if map_files:
            images, maps = draw_with_maps(model, request, sampling, batch_size=options.batch_size)
        else:
            images = draw_images(model, request, sampling, batch_size=options.batch_size)
        outputs = {path: functools.partial(_save, images) for path in options.out}
        for i, path in enumerate(map_files):
            outputs[path] = functools.partial(_save_maps, images[i], maps[i])
        for path in write_all(outputs):
            print(path)


def _check_request(
    source: RunSource | Path, request: Request, sampling: Sampling, with_maps: bool
) -> None:
    """Raise ValueError for a request that does not fit the model, before its weights are loaded."""
    if isinstance(source, RunSource):
        dataclasses.replace(source.spec, sampling=sampling)
        model = without_weights(source)
    else:
        model = stable_diffusion.read_without_weights(source)
    read_request(model, request, sampling)
    if with_maps:
        check_word_maps(model, request.prompts)
    else:
        check_tokenizer(model)


def _default_sampling(source: RunSource | Path, sampler: str | None) -> Sampling:
    """The sampling of a run, or of the scheduler of a pipeline; by another `sampler` if given."""
    if isinstance(source, RunSource):
        return default_sampling(source.spec, sampler)
    scheduler = stable_diffusion.read_scheduler(source, stable_diffusion.read_index(source))
    own = read_own_settings(source).applied(latent_scheduler.sampling_for(scheduler))
    if sampler in (None, own.sampler):
        return own
    return latent_scheduler.with_sampler(own, scheduler, sampler)


def _save(images: np.ndarray, path: Path) -> None:
    if len(images) == 1 and path.suffix.lower() == ".png":
        # A grid would have a border.
        image_grids.save_picture(to_image(images[0]), path)
    else:
        image_grids.save_images(images, path)


def _save_maps(image: np.ndarray, maps: WordMaps, path: Path) -> None:
    heat.save_heat(image, maps.words, maps.maps, PERIODS[: maps.maps.shape[1]], path)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings of the block without the line of code that raised them."""

    def show(message, *_, **__):
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: check --prompt-file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): convert it.") from error
    return [line.strip() for line in lines if line.strip()]
