"""Measure whether samples follow their condition: a number or an image.

    python benchmarks/conditions.py --ckpt runs/digits_brightness [--guidance-scale 2]
    python benchmarks/conditions.py --ckpt runs/cifar10_upscale [--split test]

For condition brightness, print for each of eight brightnesses the mean and the deviation of that of
its samples. For conditions reduced and grey, print the peak signal-to-noise ratio in dB of the
samples to the originals, and of the condition itself to them: the copy enlarged by the cubic
kernel, or the grey copy.
"""

import argparse
import dataclasses

import numpy as np

from ddpm_jax.cli.arguments import one_line_errors
from ddpm_jax.data.values import Scales
from ddpm_jax.errors import check
from ddpm_jax.evaluate import with_split
from ddpm_jax.generation.conditions import conditions_at, read_conditions
from ddpm_jax.generation.generate import generate
from ddpm_jax.runs.sources import open_run

LEVELS = np.arange(60.0, 100.0, 5.0)


def psnr(images: np.ndarray, originals: np.ndarray) -> float:
    """The peak signal-to-noise ratio in dB of images in [-1, 1]: its mean over the images.

    Errors below half a level of 8 bits count as that, since a grey image is its own grey copy.
    """
    error = np.mean((np.clip(images, -1, 1) - originals) ** 2, (1, 2, 3))
    error = np.maximum(error, (1 / 255) ** 2)
    return float(np.mean(10 * np.log10(4 / error)))


def main(args: argparse.Namespace) -> None:
    """Print the measurements of a run."""
    source = open_run(args.ckpt)
    data = with_split(source.config.data, args.split)
    check(
        data.condition in ("brightness", "reduced", "grey"),
        f"A run on condition {data.condition} has no such measure: give one on brightness, "
        "reduced or grey.",
    )
    check(args.num % len(LEVELS) == 0, f"--num must be a multiple of {len(LEVELS)}.")
    config = dataclasses.replace(source.config, data=data)
    sampling = config.sampling.override(
        sampler="dpmpp_2m", steps=20, guidance_scale=args.guidance_scale
    )
    options = {"num_images": args.num, "batch_size": 32, "seed": 0, "sampling": sampling}
    params = source.params("ema")
    if config.data.condition == "brightness":
        rows = read_conditions(config.model, LEVELS[:, None], source.condition_values)
        drawn = generate(config, params, conditions=rows, **options)[0]
        levels = drawn.mean((1, 2, 3)).reshape(-1, len(LEVELS))  # (n / 8, 8)
        for asked, each in zip(LEVELS, levels.T, strict=True):
            print(f"asked for {asked:.0f}: {each.mean():5.1f} +- {each.std():.1f}")
        return
    images = config.load_images(Scales(source.values, source.condition_values))
    indices = np.random.RandomState(0).permutation(len(images))[: args.num]
    batch = images.read(indices)
    given = conditions_at(config.model, images, indices)
    drawn = generate(config, params, to_values=np.asarray, **given, **options)[0]
    originals = batch["image"] / np.float32(127.5) - 1
    print(f"PSNR over {args.num} images, in dB")
    print(f"samples   {psnr(drawn, originals):.2f}")
    print(f"condition {psnr(batch['condition_image'], originals):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--split")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    with one_line_errors(debug=False):
        main(parser.parse_args())
