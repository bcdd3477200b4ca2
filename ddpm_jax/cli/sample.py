"""The main function of sample.py and ddpm-jax-sample: draw samples and write them to files."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.cli import arguments, text_options
from ddpm_jax.cli.condition_options import ConditionOptions
from ddpm_jax.cli.edit_options import EditOptions
from ddpm_jax.cli.lora_options import LoraOptions
from ddpm_jax.cli.run_options import BatchedRunOptions, named_step
from ddpm_jax.cli.sampling_arguments import default_sampling, describe, parse_with_sampling
from ddpm_jax.data.pixels import check_shown, describe_colours
from ddpm_jax.data.values import Levels
from ddpm_jax.errors import check
from ddpm_jax.figures import image_grids
from ddpm_jax.generation.conditions import count_of
from ddpm_jax.generation.generate import choose_labels, generate_shown
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.pretrained.lora_files import add_lora
from ddpm_jax.runs.sources import MISSING, RunSource, Source, open_checkpoint

DEFAULT_NUM = 64
PROGRESS_CHUNKS = 20
GIF_FRAMES = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(ConditionOptions, LoraOptions, EditOptions, BatchedRunOptions):
    """Draw images from a trained network, `--ckpt DIR`, with any sampler, `--sampler NAME`.

    DIR is the directory of a run, a network of the package such as digits, or a folder or hub
    repository in the diffusers layout. `--ckpt DIR --help` also lists the settings of sampling,
    such as `--steps` and `--guidance-scale`, with the network's own as defaults; for a network that
    draws from texts it lists `--prompt` and its settings.
    """

    num: int | None = None
    """Number of images; None for 64, or one for each image of --invert, or for each condition."""
    label: tuple[str, ...] = ()
    """Classes, such as cat,dog or 3,5,7, which the images take in turn. By default, all classes;
    with --image or --interpolate no class, and then no guidance, if the network was trained with
    label dropout. A word is a number unless it is the name of a class."""
    out: tuple[Path, ...] = ()
    """Files or folders: X.png is a grid, X.npz holds NHWC under `images` (uint8, or the values of a
    run on arrays), X.gif shows the denoising path, and a folder gets one PNG per image."""
    channels: tuple[int, ...] = ()
    """Channels that pictures show: one in grey, or three as red, green and blue; by default those
    of the run's log.channels."""
    trajectory: bool = False
    """Also write ten stages of the denoising path of ten samples to X_chain.png."""

    def __post_init__(self):
        super().__post_init__()
        check(self.num is None or self.num >= 1, f"--num must be at least 1, not {self.num}.")
        image_grids.check_outputs(self.out, self.num, gif=True)


def run() -> None:
    """Run the command with the arguments of this process."""
    arguments.run(main)


def main(args: list[str]) -> None:
    """Run the command with these arguments."""
    ckpt, args = arguments.take_option(args, "--ckpt")
    if ckpt is None:
        if {"-h", "--help"} & set(args):
            prog = f"{arguments.command('sample')} --ckpt DIR"
            arguments.parse(SampleOptions, args, None, prog, describe(SampleOptions))
        raise ValueError(MISSING)
    sampler, args = arguments.take_option(args, "--sampler")
    pipeline = text_options.find_pipeline(ckpt)
    if pipeline is not None:
        text_options.main(args, ckpt, sampler, pipeline)
        return
    source = open_checkpoint(ckpt, named_step(args))
    if isinstance(source, RunSource) and isinstance(source.config, LatentConfig):
        text_options.main(args, ckpt, sampler, source)
        return
    options, sampling = parse(args, ckpt, source, sampler)
    spec = dataclasses.replace(source.spec, sampling=sampling)
    conditions = options.conditions(spec.model, source.condition_values)
    num_images = options.num or options.default_num() or count_of(conditions) or DEFAULT_NUM
    given = arguments.class_numbers("--label", options.label, source.classes)
    for what, number in (("conditions", count_of(conditions)), ("labels", len(given))):
        check(
            number <= num_images,
            f"--num {num_images} leaves out some of {number} {what}: raise --num.",
        )
    options.set_up_jax(num_images)
    edit = options.edit(spec, num_images, source.values)
    labels = choose_labels(spec.model, given, edit)
    image_grids.check_outputs(options.out, num_images, gif=True)
    image_grids.check_paths(options.out, options.trajectory)
    shown = options.channels or source.shown_channels
    check_shown(shown, spec.model.channels, "--channels")
    loras = options.lora_files()
    with options.explain_oom(spec.model):
        params = source.params(options.weights)
        for path, scale in loras:
            params = add_lora({"unet": (spec.model, params)}, path, scale)["unet"]
        of_images = {"labels": labels, "conditions": conditions, "edit": edit}
        states = draw_states(spec, params, options, num_images, source.values, **of_images)
    saved = image_grids.save_states(states, options.out, options.trajectory, source.values, shown)
    for path in saved:
        print(path)
    if (colours := describe_colours(spec.model.channels, shown)) is not None:
        print(f"Pictures show {colours}; X.npz holds the values.", file=sys.stderr)


def parse(
    args: list[str], ckpt: str, source: Source, sampler: str | None
) -> tuple[SampleOptions, Sampling]:
    """Parse the options of the command and the settings of sampling.

    The recipe of `source` gives the defaults of the settings. `sampler` names a sampler, or is None
    for the recipe's; `--sampler.OPTION` sets its options.
    """
    default = default_sampling(source.spec, sampler)
    out = (source.output_folder / "samples.png",)
    prog = f"{arguments.command('sample')} --ckpt {ckpt}"
    return parse_with_sampling(SampleOptions, args, default, prog, out=out)


def draw_states(
    spec: ModelSpec,
    params: Params,
    options: SampleOptions,
    num_images: int,
    values: Levels,
    **of_images: Any,
) -> np.ndarray:
    """Draw states (k, n, h, w, c), of which the last one holds the samples, as these values.

    `of_images` are the labels, conditions and edit of `generate`. The other states show the
    denoising path. Without an output that shows it, k is 1.
    """
    trajectory = options.trajectory or any(image_grids.kind_of(out) == "gif" for out in options.out)
    return generate_shown(
        spec,
        params,
        num_images=num_images,
        batch_size=options.batch_size,
        seed=options.seed,
        min_chunks=GIF_FRAMES if trajectory else PROGRESS_CHUNKS,
        trajectory=trajectory,
        to_values=values.to_values,
        **of_images,
    )
