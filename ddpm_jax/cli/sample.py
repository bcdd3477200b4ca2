"""The command that draws samples from a trained net: checkpoint -> sampler -> pictures."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ddpm_jax import samplers
from ddpm_jax.cli import arguments
from ddpm_jax.cli.edit_options import EditOptions
from ddpm_jax.cli.run_options import BatchedRunOptions
from ddpm_jax.errors import check
from ddpm_jax.figures import image_grids
from ddpm_jax.generation.editing import Edit
from ddpm_jax.generation.generate import choose_labels, generate_shown
from ddpm_jax.generation.recipe import Recipe
from ddpm_jax.generation.sampling import Sampling, with_learned_variance
from ddpm_jax.models import Params
from ddpm_jax.runs.sources import MISSING, DiffusersSource, RunSource, open_any

DEFAULT_NUM, PROGRESS_PARTS, GIF_FRAMES = 64, 20, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(EditOptions, BatchedRunOptions):
    """Draw images from a trained run, `--ckpt DIR`, with any sampler, `--sampler NAME`."""

    num: int | None = None
    """How many pictures; None for 64, or with --invert one of each."""
    label: tuple[str, ...] = ()
    """Classes, such as 3,5,7: picture i is of the i-th of them, in turn; by default of all."""
    out: tuple[Path, ...] = ()
    """Files: X.png a grid, X.npz uint8 NHWC under `images`, X.gif the denoising path, a folder one PNG each."""
    trajectory: bool = False
    """Also write the denoising path of ten samples as X_chain.png."""

    def __post_init__(self):
        super().__post_init__()
        check(self.num is None or self.num >= 1, f"--num must be at least 1, not {self.num}")
        for path in self.out:
            image_grids.check_output(path, self.num, gif=True)


def main(args: list[str]) -> None:
    """Draw what the command line says."""
    ckpt, args = arguments.take_option(args, "--ckpt")
    if ckpt is None:
        if {"-h", "--help"} & set(args):
            arguments.parse(SampleOptions, args, None, "sample.py --ckpt DIR")
        raise ValueError(MISSING)
    source = open_any(ckpt)
    name, args = arguments.take_option(args, "--sampler")
    draw, sampling = parse(args, ckpt, source, name)
    source = source if draw.checkpoint is None else open_any(ckpt, draw.checkpoint)
    recipe = dataclasses.replace(source.recipe, sampling=sampling)
    num = draw.num or draw.default_num() or DEFAULT_NUM
    draw.set_up_jax(num)
    edit = draw.edit(recipe, num)
    with draw.explain_oom(recipe.model):
        states = draw_states(recipe, source.params(draw.weights), draw, num, edit)
    for path in image_grids.save_states(states, draw.out, draw.trajectory):
        print(path)


def parse(
    args: list[str], ckpt: str, source: RunSource | DiffusersSource, name: str | None
) -> tuple[SampleOptions, Sampling]:
    """Read what to draw, and how, from the command line.

    `name` is the sampler, or None for that of the recipe; its options are `--sampler.OPTION`. Defaults come from the
    recipe of `source`.
    """
    default = source.recipe.sampling.override(**({} if name is None else {"sampler": name}))
    default = with_learned_variance(source.recipe.objective, default)
    options = arguments.options_class(samplers.factory(default.sampler), default.options)
    own = [("sampler", options, options()), ("options", tyro.conf.Suppress[Any], None)]
    settings = dataclasses.make_dataclass(
        "Arguments", own, bases=(SampleOptions, Sampling), frozen=True, kw_only=True
    )
    shared = [
        field.name
        for field in dataclasses.fields(Sampling)
        if field.name not in ("sampler", "options")
    ]
    given = {name: getattr(default, name) for name in shared}
    defaults = settings(out=(source.pictures / "samples.png",), **given)
    draw = arguments.parse(settings, args, defaults, f"sample.py --ckpt {ckpt}")
    chosen = {name: getattr(draw, name) for name in shared}
    return draw, Sampling(
        sampler=default.sampler, options=dataclasses.asdict(draw.sampler), **chosen
    )


def draw_states(
    recipe: Recipe, params: Params, draw: SampleOptions, num: int, edit: Edit | None
) -> np.ndarray:
    """uint8 states (k, num, h, w, c): the last holds the samples, the others, if asked for, the path to them."""
    path = draw.trajectory or any(out.suffix == ".gif" for out in draw.out)
    labels = choose_labels(recipe.model, arguments.whole_numbers("--label", draw.label), edit)
    draw_all = partial(
        generate_shown, recipe, params, num=num, batch_size=draw.batch_size, seed=draw.seed
    )
    return draw_all(
        labels=labels, edit=edit, stages=GIF_FRAMES if path else PROGRESS_PARTS, path=path
    )
