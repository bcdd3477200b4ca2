"""What training on many chips would be bound by, on paper: gradients over links beside arithmetic.

    python benchmarks/scaling.py [--recipes cifar10 butterflies]

Each chip has a copy of the net and a share of the batch, and a step adds up the gradients of all chips in a ring, which
sends 2 (n - 1) / n of their bytes through each chip's link. Arithmetic is three forward passes, at the share of a
chip's peak that is this project's goal. The smallest batch a chip is that at which both take as long; below it, links
are what a step waits for. Nothing here is measured; the operations and the parameters of the nets are counted.
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

from ddpm_jax.cli.recipes import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"
CHIPS = (8, 64, 256, 1024)
SHARE_OF_PEAK = 0.4


class Chip(NamedTuple):
    """TFLOP/s of dense bfloat16, and the GB/s that a chip can send to the next one, as the makers state them."""

    name: str
    peak: float
    link: float


MADE = [
    Chip("TPU v5p, 1,200 GB/s both ways", 459, 600),
    Chip("H100, NVLink of 900 GB/s both ways", 989, 450),
    Chip("H100, one 400 Gb/s adapter each", 989, 50),
]


def counted(name: str) -> tuple[int, float]:
    """The parameters of a recipe's net, and the operations of a forward pass of one picture."""
    model = load_recipe(name, CONFIGS).model
    params = jax.eval_shape(model.init, jax.random.key(0))
    apply = jax.jit(partial(model.apply, dtype=jnp.bfloat16))
    picture = (
        jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    return model.parameter_count(), apply.lower(params, *picture).cost_analysis()["flops"]


def cell(count: int, chip: Chip, parameters: int, flops: float) -> str:
    """Milliseconds of a step that a chip sends gradients for, and the smallest batch a chip that takes as long."""
    seconds = 2 * (count - 1) / count * 4 * parameters / (chip.link * 1e9)
    batch = math.ceil(seconds * SHARE_OF_PEAK * chip.peak * 1e12 / (3 * flops))
    return f"{1e3 * seconds:.2f} ms, {batch}"


def main(recipes: list[str]) -> None:
    """Prints the table."""
    print(f"| net | chip and link | {' | '.join(f'{count:,} chips' for count in CHIPS)} |")
    print(f"| --- | --- |{' --- |' * len(CHIPS)}")
    for name in recipes:
        parameters, flops = counted(name)
        net = (
            f"{name}: {parameters / 1e6:.1f} million parameters, {flops / 1e9:.1f} GFLOP a picture"
        )
        for chip in MADE:
            cells = " | ".join(cell(count, chip, parameters, flops) for count in CHIPS)
            print(f"| {net} | {chip.name} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["cifar10", "butterflies"])
    main(parser.parse_args().recipes)
