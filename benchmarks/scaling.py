"""Calculate what limits training on many chips: sending gradients, or arithmetic.

    python benchmarks/scaling.py [--recipes cifar10 butterflies]

Each chip holds a copy of the network and a shard of the batch. A step adds up the gradients of all
n chips in a ring, which sends 2 (n - 1) / n of their bytes through each chip's link. The arithmetic
is three forward passes, at 40% of the chip's peak, which is this project's goal. The table prints
the time to send the gradients, and the smallest batch per chip whose arithmetic takes at least as
long. With a smaller batch, a step waits for the links. Nothing here is measured: the figures of
chips and links are the makers', and the parameters and operations of the networks are counted.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import operations
from chip_kinds import CHIPS

from ddpm_jax.cli.recipes import load_recipe

NUM_CHIPS = (8, 64, 256, 1024)
FRACTION_OF_PEAK = 0.4


H100 = CHIPS["h100"]
V5P = CHIPS["v5p"]
LINKS = [
    ("TPU v5p, 1,200 GB/s both ways", V5P.peak, V5P.link),
    ("H100, NVLink of 900 GB/s both ways", H100.peak, H100.link),
    ("H100, one 400 Gb/s adapter each", H100.peak, H100.adapter),
]
"""A chip and its link, TFLOP/s of the chip, and GB/s that it can send to the next one."""


def cell(n: int, peak: float, link: float, parameters: int, flops: float) -> str:
    """The milliseconds in which a chip sends gradients, and the batch per chip that takes as long.

    Gradients are float32, 4 bytes per parameter. `flops` are those of a forward pass of one image.
    """
    seconds = 2 * (n - 1) / n * 4 * parameters / (link * 1e9)
    image_seconds = operations.PASSES_OF_A_STEP * flops / (FRACTION_OF_PEAK * peak * 1e12)
    return f"{1e3 * seconds:.2f} ms, {math.ceil(seconds / image_seconds)}"


def main(recipes: list[str]) -> None:
    """Print the table."""
    print(f"| net | chip and link | {' | '.join(f'{n:,} chips' for n in NUM_CHIPS)} |")
    print(f"| --- | --- |{' --- |' * len(NUM_CHIPS)}")
    for recipe in recipes:
        model = load_recipe(recipe).model
        parameters = model.parameter_count()
        flops = operations.of_image(model, "bfloat16")
        millions = f"{parameters / 1e6:.1f} million parameters"
        net = f"{recipe}: {millions}, {flops / 1e9:.1f} GFLOP per image"
        for name, peak, link in LINKS:
            cells = " | ".join(cell(n, peak, link, parameters, flops) for n in NUM_CHIPS)
            print(f"| {net} | {name} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["cifar10", "butterflies"])
    main(parser.parse_args().recipes)
