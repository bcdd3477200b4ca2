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
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import jax.numpy as jnp
from chip_kinds import CHIPS

from ddpm_jax.cli.recipes import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_CHIPS = (8, 64, 256, 1024)
FRACTION_OF_PEAK = 0.4


class Linked(NamedTuple):
    """A chip with a link to the next one."""

    name: str
    peak: float
    """TFLOP/s of dense bfloat16."""
    link: float
    """GB/s that the chip can send to the next one."""


LINKED = [
    Linked("TPU v5p, 1,200 GB/s both ways", CHIPS["v5p"].peak, CHIPS["v5p"].link),
    Linked("H100, NVLink of 900 GB/s both ways", CHIPS["h100"].peak, CHIPS["h100"].link),
    Linked("H100, one 400 Gb/s adapter each", CHIPS["h100"].peak, 50),
]


def count_operations(recipe: str) -> tuple[int, float]:
    """The parameters of a recipe's network, and the operations of a forward pass of one image."""
    model = load_recipe(recipe, CONFIGS).model
    params = jax.eval_shape(model.init, jax.random.key(0))
    apply = jax.jit(partial(model.apply, dtype=jnp.bfloat16))
    xt = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    return model.parameter_count(), apply.lower(params, xt, t).cost_analysis()["flops"]


def cell(n: int, chip: Linked, parameters: int, flops: float) -> str:
    """The milliseconds in which a chip sends gradients, and the batch per chip that takes as long.

    Gradients are float32, 4 bytes per parameter.
    """
    seconds = 2 * (n - 1) / n * 4 * parameters / (chip.link * 1e9)
    batch = math.ceil(seconds * FRACTION_OF_PEAK * chip.peak * 1e12 / (3 * flops))
    return f"{1e3 * seconds:.2f} ms, {batch}"


def main(recipes: list[str]) -> None:
    """Print the table."""
    print(f"| net | chip and link | {' | '.join(f'{n:,} chips' for n in NUM_CHIPS)} |")
    print(f"| --- | --- |{' --- |' * len(NUM_CHIPS)}")
    for recipe in recipes:
        parameters, flops = count_operations(recipe)
        millions = f"{parameters / 1e6:.1f} million parameters"
        net = f"{recipe}: {millions}, {flops / 1e9:.1f} GFLOP per image"
        for chip in LINKED:
            cells = " | ".join(cell(n, chip, parameters, flops) for n in NUM_CHIPS)
            print(f"| {net} | {chip.name} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["cifar10", "butterflies"])
    main(parser.parse_args().recipes)
