"""Compare diffusers and ddpm_jax over whole sampling runs.

    python tests/parity/chains.py [FOLDER ...] [--out DIR]    # needs the extra `parity`

It takes about 3 minutes of CPU time.

First, a small network with random weights is exported with every sampler that reproduces a
scheduler, and DDPMPipeline draws images from each export.

Then both sides open the same models in the diffusers layout: the random network, and every FOLDER,
such as an export of a trained run. Both take 50 steps from the same initial noise, and add the same
noise in each step. The random network predicts v, because DDIM is chaotic with random weights that
predict eps: initial noise multiplied by 1 + 1e-7 changes every pixel. Each line shows the largest
difference of the images in units of 1/255, and of x0 before it is clipped to [-1, 1]. With --out,
the grids of both sides are saved side by side.

The exit status is 1 if images differ by more than 1/255 or the pipeline fails.
"""

import shared  # before torch

# isort: split
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
from nets import DDPM, block_types, random_model

from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.figures.image_grids import image_grid
from ddpm_jax.generation.walk import sampling_grid, walk
from ddpm_jax.pretrained.pipeline_folder import load_pretrained, save_pretrained
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.pretrained.schedulers import SCHEDULERS
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise

STEPS = 50
# Images do not influence each other, so more of them take more time and show little more.
NUM_IMAGES = 4
COMPARED = ("DDPM", "DDIM", "PNDM", "UniPCMultistep", "DPMSolverMultistep")
SMALL = {"block_out_channels": [32, 64], "sample_size": 16, **block_types([1], [0], 2), **DDPM}


def save_random(folder):
    """Save a model of diffusers with random weights."""
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    unet = random_model(SMALL, 0)
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def our_end(folder, name, keys):
    """Our x0 before it is clipped, and the noise of each step."""
    model = load_pretrained(folder, scheduler=f"{name}Scheduler")
    objective = model.spec.objective
    sampling = dataclasses.replace(model.spec.sampling, steps=STEPS)
    network = Partial(model.model.apply, model.params)
    *_, x0 = walk(keys, objective, network, model.model.image_shape, sampling, 1)
    grid = sampling_grid(objective, sampling)
    noise = initial_noise(keys, model.model.image_shape)
    draw = jax.jit(step_noise)
    return np.asarray(x0), [np.asarray(draw(keys, grid.row(i), noise)) for i in range(STEPS)]


def their_end(folder, name, noise, step_noises):
    """The x0 of diffusers from this initial noise, with these noises in its steps."""
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    remaining = iter(step_noises)
    module = sys.modules[type(scheduler).__module__]
    x = torch.tensor(noise.transpose(0, 3, 1, 2)) * scheduler.init_noise_sigma  # (b, c, h, w)

    def next_noise(*_, **__):
        return torch.tensor(next(remaining).transpose(0, 3, 1, 2))

    draw = mock.Mock(side_effect=next_noise)
    with torch.no_grad(), mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            output = pipeline.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def print_line(model_name, folder, name, out):
    """Compare one scheduler. Return the figure of its images."""
    keys = sample_keys(0, jnp.arange(NUM_IMAGES))
    ours, step_noises = our_end(folder, name, keys)
    noise = np.asarray(initial_noise(keys, ours.shape[1:]))
    theirs = their_end(folder, name, noise, step_noises)
    apart = np.max(np.abs(ours - theirs))
    images_apart = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    figure = shared.Figure(f"{name} of the {model_name}, in 1/255,", images_apart, 1.0)
    mark = "OVER" if figure.over else ""
    print(f"{model_name:30}{name:20}{images_apart:8.4f}  {apart:8.1e}  {mark}", flush=True)
    if out is not None:
        grids = [np.asarray(image_grid(to_uint8(x0), columns=4)) for x0 in (ours, theirs)]
        both = np.stack([grid.reshape(*grid.shape[:2], -1) for grid in grids])  # (2, h, w, c)
        image_grid(both, columns=2).save(out / f"{name}.png")
    return figure


def print_pipelines(folder):
    """Export with each sampler and draw from DDPMPipeline. Return how often it failed."""
    failed = 0
    model = load_pretrained(folder)
    for name in SCHEDULERS:
        sampling = parse_scheduler({"_class_name": name}).sampling
        spec = dataclasses.replace(model.spec, sampling=sampling)
        with tempfile.TemporaryDirectory() as out:
            scheduler = save_pretrained(spec, model.params, out, for_pipeline=True)
            pipeline = diffusers.DDPMPipeline.from_pretrained(out)
            pipeline.set_progress_bar_config(disable=True)
            try:
                images = pipeline(batch_size=2, num_inference_steps=4).images
                result = f"draws {len(images)}"
            except Exception as error:
                failed += 1
                result = f"FAILED {error}"
        print(f"{sampling.sampler:20}{scheduler:32}{result}", flush=True)
    return failed


def main():
    """Print the table. Return the exit status."""
    parser = shared.make_parser(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="models in the diffusers layout")
    parser.add_argument("--out", type=Path, help="folder for grids of both sides")
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    with tempfile.TemporaryDirectory() as random:
        save_random(random)
        shared.print_progress("exports")
        failed = print_pipelines(random)
        shared.print_progress("whole runs")
        print(f"{'model':30}{'scheduler':20}{'/255':>8}  {'x0':>8}")
        models = {"random network": random} | {str(folder): folder for folder in options.folders}
        figures = [
            print_line(model_name, folder, name, options.out)
            for model_name, folder in models.items()
            for name in COMPARED
        ]
    what = f"{len(SCHEDULERS)} exports in DDPMPipeline, and images after {STEPS} steps"
    return shared.conclude(what, figures, failed)


if __name__ == "__main__":
    sys.exit(main())
