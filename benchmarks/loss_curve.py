"""Save a run's loss by band of t as its recipe's reference curve.

    python benchmarks/loss_curve.py --ckpt runs/digits --recipe digits

Write configs/curves/RECIPE.json, with which `python -m ddpm_jax.evaluate --loss` compares runs.
Refuse a run that differs from the recipe in a setting on which the loss depends. A run that stopped
early has fewer windows.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddpm_jax.cli.arguments import one_line_errors
from ddpm_jax.cli.recipes import CURVES, FOLDER, load_recipe
from ddpm_jax.errors import check
from ddpm_jax.evaluation import loss_curves
from ddpm_jax.files import atomic_file
from ddpm_jax.runs.metrics import METRICS, read_metrics
from ddpm_jax.runs.sources import open_run
from ddpm_jax.settings_json import to_json


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="directory of the run")
    parser.add_argument("--recipe", required=True, help="name of its recipe")
    options = parser.parse_args()
    path = FOLDER / CURVES / f"{options.recipe}.json"
    curve = save_curve(options.ckpt, load_recipe(options.recipe), path)
    print(f"{path}: {len(curve.ends)} windows, to step {curve.ends[-1]:,}")


def save_curve(ckpt, recipe, path):
    """Write the curve of a run of this recipe, and return it. Raise ValueError for another run."""
    run = open_run(ckpt)
    config = to_json(run.config)
    different = loss_curves.loss_differences(config, to_json(recipe))
    check(
        not different,
        f"{ckpt} differs from the recipe in {', '.join(different)}: give a run of the recipe.",
    )
    curve = loss_curves.make_curve(read_metrics(run.folder / METRICS))
    with atomic_file(path) as file:
        file.write((json.dumps(loss_curves.to_json(curve, config)) + "\n").encode())
    return curve


if __name__ == "__main__":
    with one_line_errors(False):
        main()
