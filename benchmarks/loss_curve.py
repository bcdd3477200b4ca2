"""Keep the loss of a run by bands of t as the curve of its recipe.

    python benchmarks/loss_curve.py --ckpt runs/digits --recipe digits

Write configs/curves/RECIPE.json, with which `python -m ddpm_jax.evaluate --loss` compares runs. The
run must have the settings of the recipe; it may be shorter.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ddpm_jax.cli.recipes import CURVES, FOLDER
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
    run = open_run(options.ckpt)
    curve = loss_curves.make_curve(read_metrics(run.folder / METRICS))
    value = loss_curves.to_json(curve, to_json(run.config))
    path = FOLDER / CURVES / f"{options.recipe}.json"
    with atomic_file(path) as file:
        file.write((json.dumps(value) + "\n").encode())
    print(f"{path}: {len(curve.ends)} windows, to step {curve.ends[-1]:,}")


if __name__ == "__main__":
    main()
