"""How long from starting `python train.py` until its first training step is done: python benchmarks/cold_start.py

    python benchmarks/cold_start.py [--recipe butterflies] [--batch-size 16] [further settings of train.py]

The real command, twice: with an empty compilation cache, which it fills, and from that cache. The data are random
pictures in a folder, as many as a batch, so that the line of the first epoch, which waits for the loss, ends step 1;
then the run is stopped. The user's own cache is not touched.
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
"""How the lines begin that train.py prints, and what is then behind it."""


def first_steps(
    recipe: str, batch_size: int, options: Sequence[str] = ()
) -> Iterator[dict[str, float]]:
    """Seconds from the start of train.py until each mark: with an empty cache, and from the cache that this filled."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        for i, picture in enumerate(
            np.random.default_rng(0).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
        ):
            Image.fromarray(picture).save(folder / "pictures" / f"{i:05d}.png")
        for run in ("cold", "warm"):
            data = f"--data folder --data.path {folder / 'pictures'} --workdir {folder / run}"
            length = f"--training.batch-size {batch_size} --training.steps 1000"
            args = ["--config", recipe, *data.split(), *length.split(), *options]
            yield marks(
                args, {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
            )


def marks(args: Sequence[str], env: dict[str, str]) -> dict[str, float]:
    """Seconds until each of the marks; raises RuntimeError where train.py ends before."""
    found, words = {}, []
    began = time.perf_counter()
    command = [sys.executable, "train.py", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes) as process:
        for line in process.stdout:
            words.append(line)
            for start in (start for start in MARKS if line.lstrip("\r ").startswith(start)):
                found.setdefault(MARKS[start], time.perf_counter() - began)
            if len(found) == len(MARKS):
                process.kill()
                return found
    raise RuntimeError(f"train.py ended before its first step: {''.join(words[-5:])}")


def main() -> None:
    """Prints the seconds of each part of both runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="butterflies")
    parser.add_argument("--batch-size", type=int, default=16)
    asked, options = parser.parse_known_args()
    names = ("empty cache", "from the cache")
    for name, found in zip(
        names, first_steps(asked.recipe, asked.batch_size, options), strict=True
    ):
        print(
            f"{name:<16}" + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in found.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
