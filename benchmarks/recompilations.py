"""A side of bench.py that counts the recompilations of a training run.

It counts JAX's event for each program that is passed to XLA's compiler, including single operations
and programs found in the persistent cache. A program counts as a recompilation after each kind of
work was done once: a training step, the end of an epoch, a sample grid with predictions, a
checkpoint, and the variational bound of a few images.
"""

import contextlib
import io
import runpy
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from sides import serve  # noqa: E402

from ddpm_jax.cli.recipes import load_recipe  # noqa: E402
from ddpm_jax.data.batches import batch_at  # noqa: E402
from ddpm_jax.evaluation.bits_per_dim import evaluate  # noqa: E402
from ddpm_jax.runs.progress import Reporter  # noqa: E402

EVENT = "/jax/core/compile/backend_compile_duration"
NUM_IMAGES = 16


def count(recipe, steps, every):
    """Count the programs up to the first grid, checkpoint and evaluation, and those after it."""
    config = load_recipe(recipe)
    images = config.data.load(config.model.image_size, config.model.channels)
    batch = batch_at(images, 0, 0, NUM_IMAGES)
    compiled = []
    before = []

    def on_event(event, *_, **__):
        compiled.append(event == EVENT)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    draw = Reporter.draw

    def draw_and_evaluate(reporter, step, state):
        draw(reporter, step, state)
        if step % every == 0:
            evaluate(config, state.ema_params["ema"], batch, NUM_IMAGES, seed=0)
        if step == every:
            before.append(sum(compiled))

    patch = mock.patch.object(Reporter, "draw", draw_and_evaluate)
    with tempfile.TemporaryDirectory() as workdir, patch:
        run = f"--config {recipe} --workdir {workdir}/run --training.steps {steps}"
        cadence = f"--log.samples-every {every} --checkpoint.every {every}"
        sys.argv = ["train.py", *run.split(), "--no-compilation-cache", *cadence.split()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return before[0], sum(compiled) - before[0]


if __name__ == "__main__":
    serve({"count": count})
