"""Train a recipe: config -> data -> state -> loop.

    python train.py --config digits
    python train.py --config cifar10 --optimizer.learning-rate 1e-4 --training.steps 2000
    python train.py --config cifar10 --data folder --data.path my_images --model conv_unet
    python train.py --config butterflies --init-from google/ddpm-cat-256 --push owner/name

Run the same command again to resume. `--config NAME --help` lists all settings.
"""

import sys
from pathlib import Path

from ddpm_jax.cli import train
from ddpm_jax.cli.arguments import one_line_errors

if __name__ == "__main__":
    with one_line_errors("--debug" in sys.argv):
        train.main(sys.argv[1:], Path(__file__).parent / "configs")
