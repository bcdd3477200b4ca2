"""A text-to-image model of our own, exported and drawn by diffusers from the same seeds.

Without `--ckpt`, the networks of the recipe `emoji` get random weights, and the tokenizer is learnt
from a few captions. The line shows the largest difference of the pixels in [0, 1], and how many are
equal as 8-bit numbers. Bounds: 1e-5 and 99.9 %.

    python tests/parity/stable_diffusion_emoji.py --ckpt emoji --prompt "red heart"

`--ckpt` takes a run, a folder, or `emoji`, which is the network of the package.
"""

import shared  # before torch

# isort: split
import dataclasses
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from stable_diffusion_pipelines import image_figures

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.pretrained.latent_scheduler import latent_scheduler_config
from ddpm_jax.pretrained.stable_diffusion import (
    StableDiffusion,
    load_stable_diffusion,
    save_stable_diffusion,
)
from ddpm_jax.runs.sources import RunSource, open_checkpoint
from ddpm_jax.runs.text_model import open_text_model
from ddpm_jax.text_to_image.draw import draw_pixels
from ddpm_jax.text_to_image.learn_tokenizer import learn_tokenizer
from ddpm_jax.text_to_image.request import Request

CAPTIONS = ("red heart", "blue heart", "woman firefighter, medium skin tone", "flag: japan")
SEED = 37
STEPS = 20
SCALE = 3.0


def random_model() -> StableDiffusion:
    """The networks of the recipe with random weights, biases and norms."""
    config = load_recipe("emoji")
    net = config.model
    autoencoder = dataclasses.replace(config.autoencoder.model.net, scaling_factor=0.7)
    params = randomized({**net.shapes(), "autoencoder": autoencoder.shapes()})
    return StableDiffusion(
        tokenizer_files=learn_tokenizer(CAPTIONS, net.vocab_size, net.max_length),
        text_encoder=net.text_encoder,
        text_params=params["text_encoder"],
        unet=net.unet,
        unet_params=params["unet"],
        autoencoder=autoencoder,
        autoencoder_params=params["autoencoder"],
        objective=config.objective,
        sampling=config.sampling,
        scheduler=latent_scheduler_config(config.objective, config.sampling),
    )


def randomized(shapes):
    """Weights of standard deviation 1 / sqrt(inputs), and small biases; norms near 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + np.float32(0.1) * normal
        if leaf.ndim == 1:
            return np.float32(0.1) * normal
        return normal / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compare(
    ckpt: str | None = None, prompts: tuple[str, ...] = CAPTIONS[1:3]
) -> tuple[list[shared.Figure], int]:
    """Print the differences of the images. Return them as figures; nothing else can be wrong."""
    model = random_model() if ckpt is None else load(ckpt)
    with tempfile.TemporaryDirectory() as temporary, jax.default_matmul_precision("highest"):
        folder = Path(temporary)
        save_stable_diffusion(model, folder)
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        opened = load_stable_diffusion(folder)
        sampling = opened.sampling.override(steps=STEPS, guidance_scale=SCALE)
        theirs = [draw_by_diffusers(pipeline, prompt, SEED + i) for i, prompt in enumerate(prompts)]
        request = Request(prompts=prompts, seed=SEED, noise="torch-cpu")
        reopened = draw_pixels(opened, request, sampling)
        # By the run's own sampling, which is not read from the scheduler's JSON.
        own_sampling = model.sampling.override(steps=STEPS, guidance_scale=SCALE)
        own = draw_pixels(model, request, own_sampling)
    figures = []
    for name, ours in (("exported", reopened), ("the run's own", own)):
        ours = np.clip(ours / 2 + 0.5, 0, 1)
        difference = np.abs(ours - np.stack(theirs)).max()
        equal = np.mean(to_uint8(ours * 2 - 1) == to_uint8(np.stack(theirs) * 2 - 1))
        print(f"{name:<14} difference {difference:.1e}, {equal:.3%} equal as 8-bit numbers")
        figures += image_figures(f"emoji, {name},", difference, equal)
    return figures, 0


def load(ckpt: str) -> StableDiffusion:
    """The model of a run with averaged weights, or of a folder or the package."""
    source = open_checkpoint(ckpt)
    if isinstance(source, RunSource):
        return open_text_model(source, source.params("ema"))
    return load_stable_diffusion(ckpt)


def draw_by_diffusers(pipeline, prompt: str, seed: int) -> np.ndarray:
    """The pixels (h, w, 3) in [0, 1] of one image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        )
    return drawn.images[0]


def main() -> int:
    parser = shared.make_parser(__doc__)
    parser.add_argument("--ckpt")
    parser.add_argument("--prompt", nargs="+", default=CAPTIONS[1:3])
    options = parser.parse_args()
    return shared.conclude("emoji", *compare(options.ckpt, tuple(options.prompt)))


if __name__ == "__main__":
    sys.exit(main())
