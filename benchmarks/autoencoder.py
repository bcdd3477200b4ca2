"""PSNR of the reconstructions of an autoencoder, on the images that it was trained on.

    python benchmarks/autoencoder.py --ckpt runs/emoji/autoencoder --out reconstructions.png
    python benchmarks/autoencoder.py --ckpt emoji --path twemoji --out reconstructions.png

`--ckpt` is the run of an autoencoder, or `emoji`, which is the network of the package.
PSNR = 10 log10(1 / MSE) of pixels in [0, 1], of each image's mean squared error. The picture shows
images and their reconstructions in turn.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from ddpm_jax.cli.arguments import one_line_errors
from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.data.pixels import to_floats, to_uint8
from ddpm_jax.errors import check
from ddpm_jax.figures import image_grids
from ddpm_jax.generation.model_spec import LatentSpec
from ddpm_jax.latent_config import AutoencoderConfig
from ddpm_jax.pretrained.stable_diffusion import load_stable_diffusion
from ddpm_jax.runs.grids import reconstruct
from ddpm_jax.runs.initial_weights import with_pretrained_network
from ddpm_jax.runs.sources import RunSource, open_checkpoint

BATCH = 64
SHOWN = 32


def main() -> None:
    """Print the PSNR, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--weights", help="weights of a run; ema by default")
    parser.add_argument("--num", type=int, help="images to measure; all by default")
    parser.add_argument("--path", help="another place of the data")
    parser.add_argument("--out", type=Path, help="a picture to write")
    options = parser.parse_args()
    name, config, model, params = load(options.ckpt, options.weights)
    if options.path is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, path=options.path)
        )
    images = config.load_images()
    count = min(options.num or len(images), len(images))
    # Spread over the set, which is in the order of the files' names, and shown in random order.
    chosen = np.linspace(0, len(images) - 1, count).astype(int)
    chosen = np.random.RandomState(0).permutation(chosen)
    psnr = []
    for start in range(0, count, BATCH):
        # The last batch is filled up, so that all have one shape.
        rows = chosen[np.arange(start, start + BATCH) % count]
        originals = images.read(rows)["image"]
        restored = to_uint8(np.asarray(reconstruct(model, params, to_floats(originals))))
        error = np.mean((originals / 255 - restored / 255) ** 2, (1, 2, 3))
        psnr.append(10 * np.log10(1 / np.maximum(error, 1e-10)))
        if start == 0 and options.out is not None:
            pairs = np.stack([originals[:SHOWN], restored[:SHOWN]], 1)
            image_grids.save_images(pairs.reshape(-1, *originals.shape[1:]), options.out)
    values = np.concatenate(psnr)[:count]
    low, middle, high = np.percentile(values, [5, 50, 95])
    print(
        f"{name}: {count} images, PSNR in dB: mean {values.mean():.2f}, "
        f"median {middle:.2f}, 5 % below {low:.2f}, 5 % above {high:.2f}"
    )


def load(ckpt: str, weights: str | None) -> tuple:
    """The name, the config with the data, the autoencoder and its parameters.

    Raise ValueError if there is no autoencoder.
    """
    source = open_checkpoint(ckpt)
    if isinstance(source, RunSource):
        config = source.config
        check(
            isinstance(config, AutoencoderConfig),
            f"{ckpt} is no run of an autoencoder: give RUN/autoencoder.",
        )
        params = source.params(weights or "ema")
        return f"{ckpt}, step {source.step}", config, config.model, params
    check(
        isinstance(source.spec, LatentSpec),
        f"{ckpt} has no autoencoder: give RUN/autoencoder or emoji.",
    )
    check(weights is None, f"{ckpt} has one set of weights: leave out --weights.")
    config = with_pretrained_network(load_recipe("emoji"), ckpt)
    params = load_stable_diffusion(ckpt).autoencoder_params
    return ckpt, config, config.autoencoder.model, params


if __name__ == "__main__":
    with one_line_errors(debug=False):
        main()
