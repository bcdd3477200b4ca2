"""Draws samples from a trained net: checkpoint -> sampler -> pictures.

    python sample.py --ckpt runs/digits --num 64 --steps 100 --out samples.png
    python sample.py --ckpt runs/digits_classes --label 3,5,7 --guidance-scale 2 --sampler heun --steps 20
    python sample.py --ckpt runs/digits --image five.png --strength 0.6
    python sample.py --ckpt google/ddpm-cat-256 --steps 50

--ckpt is a run, or a folder or hub repository in the layout of diffusers. All else has a default from its recipe.
`--ckpt DIR --help` lists every setting.
"""

import os
import sys

by_itself = __name__ == "__main__" and sys.orig_argv[1:] == sys.argv
if by_itself and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # a step's memory is new each time: in large pages
    os.execv(sys.executable, [sys.executable, *sys.argv])

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ddpm_jax import command_line, on_run, pictures, samplers
from ddpm_jax.diffusion import Sampling
from ddpm_jax.editing import Edit
from ddpm_jax.errors import check
from ddpm_jax.from_pictures import FromPictures
from ddpm_jax.generation import generate_shown, labels_of
from ddpm_jax.models import Params
from ddpm_jax.on_run import InBatches, PretrainedNet, TrainedRun, open_any
from ddpm_jax.recipe import Recipe

DEFAULT_NUM, PROGRESS_PARTS, GIF_FRAMES = 64, 20, 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw(FromPictures, InBatches):
    """What to draw; `--ckpt DIR` names the run and `--sampler NAME` the algorithm."""

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
            pictures.check_output(path, self.num, gif=True)


def main(args: list[str]) -> None:
    """Draws what the command line says."""
    ckpt, args = command_line.take_option(args, "--ckpt")
    if ckpt is None:
        if {"-h", "--help"} & set(args):
            command_line.parse(Draw, args, None, "sample.py --ckpt DIR")
        raise ValueError(on_run.MISSING)
    source = open_any(ckpt)
    name, args = command_line.take_option(args, "--sampler")
    draw, sampling = parse(args, ckpt, source, name)
    source = source if draw.checkpoint is None else open_any(ckpt, draw.checkpoint)
    recipe = dataclasses.replace(source.recipe, sampling=sampling)
    num = draw.num or draw.one_each() or DEFAULT_NUM
    draw.set_up_jax(num)
    edit = draw.edit(recipe, num)
    with draw.shortage_named(recipe.model):
        states = draw_states(recipe, source.params(draw.weights), draw, num, edit)
    for path in pictures.save_states(states, draw.out, draw.trajectory):
        print(path)


def parse(args: list[str], ckpt: str, source: TrainedRun | PretrainedNet, name: str | None) -> tuple[Draw, Sampling]:
    """What to draw and how, the options of the sampler of this name as `--sampler.NAME`; defaults from the recipe."""
    recipe = source.recipe.sampling
    sampler = name or recipe.sampler
    known = recipe.options if sampler == recipe.sampler else {}
    known = source.recipe.objective.resolved(Sampling(sampler=sampler, options=known)).options
    options = command_line.options_class(samplers.find(sampler), known)
    own = [("sampler", options, options()), ("options", tyro.conf.Suppress[Any], None)]
    arguments = dataclasses.make_dataclass("Arguments", own, bases=(Draw, Sampling), frozen=True, kw_only=True)
    shared = [field.name for field in dataclasses.fields(Sampling) if field.name not in ("sampler", "options")]
    recipe = recipe.cleared_for(name for name in shared if command_line.is_given(args, name))
    how = {name: getattr(recipe, name) for name in shared}
    default = arguments(out=(source.pictures / "samples.png",), **how)
    draw = command_line.parse(arguments, args, default, f"sample.py --ckpt {ckpt}")
    how = {name: getattr(draw, name) for name in shared}
    return draw, Sampling(sampler=sampler, options=dataclasses.asdict(draw.sampler), **how)


def draw_states(recipe: Recipe, params: Params, draw: Draw, num: int, edit: Edit | None) -> np.ndarray:
    """uint8 states (k, num, h, w, c): the last holds the samples, the others, if wanted, the path to them."""
    path = draw.trajectory or any(out.suffix == ".gif" for out in draw.out)
    labels = labels_of(recipe.model, command_line.whole_numbers("--label", draw.label), edit)
    draw_all = partial(generate_shown, recipe, params, num=num, batch_size=draw.batch_size, seed=draw.seed)
    return draw_all(labels=labels, edit=edit, stages=GIF_FRAMES if path else PROGRESS_PARTS, path=path)


if __name__ == "__main__":
    with command_line.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
