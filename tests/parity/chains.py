"""Whole chains of diffusers beside ours: python tests/parity/chains.py [FOLDER ...] [--out DIR]  (extra `parity`).

A model in the layout of diffusers, here a small net with random weights and any FOLDER (such as an export of a trained
run), is opened by both and walked by both through 50 steps from the same noise, with the same noise on the way. The
random net predicts v: where one predicts eps, DDIM's walk is chaos (noise times 1 + 1e-7 changes every pixel). A line
gives the largest difference of the pictures in steps of 1/255, and of x0 before it is cut to [-1, 1]; with --out both
grids are left there side by side. Before, the random net is exported with each sampler that walks as a scheduler does,
and DDPMPipeline draws from it. The exit status is 1 if pictures differ by more than 1/255, or the pipeline does not.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import Partial
from nets import DDPM, levels, made

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.figures.image_grids import image_grid
from ddpm_jax.generation.walk import sampling_grid, walk
from ddpm_jax.pretrained.pipeline_folder import load_pretrained, save_pretrained
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.pretrained.schedulers import SCHEDULERS as SCHEDULERS_THERE_ARE
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise

STEPS, COUNT = 50, 16
SCHEDULERS = ("DDPM", "DDIM", "PNDM", "UniPCMultistep", "DPMSolverMultistep")
SMALL = {"block_out_channels": [32, 64], "sample_size": 16, **levels([1], [0], 2), **DDPM}


def save_random(folder):
    """A model of diffusers with random weights."""
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet=made(SMALL, 0), scheduler=scheduler).save_pretrained(folder)


def end_of_ours(folder, name, keys):
    """x0 of ours before it is cut, and the noise of each step."""
    model = load_pretrained(folder, scheduler=f"{name}Scheduler")
    objective, sampling = (
        model.recipe.objective,
        dataclasses.replace(model.recipe.sampling, steps=STEPS),
    )
    network = Partial(model.model.apply, model.params)
    *_, x0 = walk(keys, objective, network, model.model.image_shape, sampling, 1)
    grid, noise = sampling_grid(objective, sampling), initial_noise(keys, model.model.image_shape)
    return np.asarray(x0), [np.asarray(step_noise(keys, grid.row(i), noise)) for i in range(STEPS)]


def end_of_diffusers(folder, name, noise, noises):
    """x0 of diffusers from this noise, with these on the way."""
    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    rest, module = iter(noises), sys.modules[type(scheduler).__module__]
    x = torch.tensor(noise.transpose(0, 3, 1, 2)) * scheduler.init_noise_sigma
    draw = mock.Mock(side_effect=lambda *_, **__: torch.tensor(next(rest).transpose(0, 3, 1, 2)))
    with torch.no_grad(), mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            output = pipeline.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def print_line(what, folder, name, out):
    """One scheduler; whether its pictures are over their bound."""
    keys = sample_keys(0, jnp.arange(COUNT))
    ours, noises = end_of_ours(folder, name, keys)
    theirs = end_of_diffusers(folder, name, np.asarray(initial_noise(keys, ours.shape[1:])), noises)
    pictures = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    over = not pictures <= 1
    print(
        f"{what:30}{name:20}{pictures:8.4f}  {np.max(np.abs(ours - theirs)):8.1e}  {'OVER' if over else ''}",
        flush=True,
    )
    if out is not None:
        grids = [np.asarray(image_grid(to_uint8(x0), columns=4)) for x0 in (ours, theirs)]
        image_grid(np.stack([grid.reshape(*grid.shape[:2], -1) for grid in grids]), columns=2).save(
            out / f"{name}.png"
        )
    return over


def print_pipelines(folder):
    """Whether DDPMPipeline draws from an export with each sampler; how many times it does not."""
    failed, model = 0, load_pretrained(folder)
    for name in SCHEDULERS_THERE_ARE:
        sampling = parse_scheduler({"_class_name": name}).sampling
        recipe = dataclasses.replace(model.recipe, sampling=sampling)
        with tempfile.TemporaryDirectory() as out:
            written = save_pretrained(recipe, model.params, out, for_pipeline=True)
            pipeline = diffusers.DDPMPipeline.from_pretrained(out)
            pipeline.set_progress_bar_config(disable=True)
            try:
                said = f"draws {len(pipeline(batch_size=2, num_inference_steps=4).images)}"
            except Exception as error:
                failed, said = failed + 1, f"FAILED {error}"
        print(f"{sampling.sampler:20}{written:32}{said}", flush=True)
    return failed


def main():
    """Prints the table; returns how many lines are over their bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as random:
        save_random(random)
        print("exports")
        failed = print_pipelines(random)
        print(f"{'model':30}{'scheduler':20}{'/255':>8}  {'x0':>8}")
        models = {"random net": random} | {str(folder): folder for folder in options.folders}
        return failed + sum(
            print_line(what, folder, name, options.out)
            for what, folder in models.items()
            for name in SCHEDULERS
        )


if __name__ == "__main__":
    sys.exit(main() > 0)
