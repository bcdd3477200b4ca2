"""Measure the time from starting `python train.py` to the end of its first training step.

    python benchmarks/cold_start.py [--recipe butterflies] [--batch-size 16] [settings of train.py]

The command runs twice: with an empty compilation cache, which it fills, and with the filled cache.
The data is a folder with one batch of random images, so an epoch has one step. train.py prints the
line of epoch 1 only when step 1 is done. Then the run is killed. The user's own compilation cache
is not touched.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
MARKS = {"settings": "imported", "images": "data loaded", "epoch 1/": "first step done"}
"""The beginnings of lines that train.py prints, and what is done when it prints them."""


def first_steps(
    recipe: str, batch_size: int, options: Sequence[str] = ()
) -> Iterator[dict[str, float]]:
    """Yield the seconds to each mark: with an empty compilation cache, then with the filled one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_folder = folder / "images"
        write_images(image_folder, batch_size, (32, 32, 3))
        env = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
        for run in ("cold", "warm"):
            data = f"--data folder --data.path {image_folder} --workdir {folder / run}"
            # An epoch is one step here, and each log record has its own line of an epoch.
            length = f"--training.batch-size {batch_size} --training.steps 1000 --log.every 1"
            args = ["--config", recipe, *data.split(), *length.split(), *options]
            yield seconds_to_marks(args, env)


def write_images(folder: Path, number: int, shape: Sequence[int]) -> None:
    """Make a folder of random images of a shape (h, w, c) with one or three channels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, *shape), np.uint8)  # (b, h, w, c)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:05d}.png")


def seconds_to_marks(args: Sequence[str], env: dict[str, str]) -> dict[str, float]:
    """Run train.py until the last mark. Raise RuntimeError if it ends before that."""
    seconds = {}
    output = []
    began = time.perf_counter()
    command = [sys.executable, "train.py", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes) as process:
        for line in process.stdout:
            output.append(line)
            for start, mark in MARKS.items():
                if line.lstrip("\r ").startswith(start):
                    seconds.setdefault(mark, time.perf_counter() - began)
            if len(seconds) == len(MARKS):
                process.kill()
                return seconds
    raise RuntimeError(f"train.py ended before the end of its first step: {''.join(output[-5:])}")


def main() -> None:
    """Print the seconds to each mark of both runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="butterflies")
    parser.add_argument("--batch-size", type=int, default=16)
    options, settings = parser.parse_known_args()
    runs = first_steps(options.recipe, options.batch_size, settings)
    for cache, marks in zip(("empty cache", "filled cache"), runs, strict=True):
        times = ", ".join(f"{mark} {seconds:.1f} s" for mark, seconds in marks.items())
        print(f"{cache:<16}{times}", flush=True)


if __name__ == "__main__":
    main()
