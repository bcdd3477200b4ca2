"""A side of bench.py: how often a training run compiles something again.

What is counted: JAX's own event of each program handed to XLA's compiler (the smallest operation, a program found in
the persistent cache too), after the first time that each kind of work was done. These kinds are a training step, the
end of an epoch, a sample grid with its predictions, a checkpoint, and the variational bound of some pictures.
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
PICTURES = 16


def count(recipe, steps, every):
    """How many programs were compiled up to the first grid, checkpoint and evaluation, and how many after that."""
    config = load_recipe(recipe, ROOT / "configs")
    images = batch_at(
        config.data.load(config.model.image_size, config.model.channels), 0, 0, PICTURES
    )
    compiled, at_first = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event == EVENT)
    )
    draw = Reporter.draw

    def watched(reporter, step, state):
        draw(reporter, step, state)
        if step % every == 0:
            evaluate(config, state.ema_params["ema"], images, PICTURES, seed=0)
        if step == every:
            at_first.append(sum(compiled))

    with tempfile.TemporaryDirectory() as workdir, mock.patch.object(Reporter, "draw", watched):
        run = f"--config {recipe} --workdir {workdir}/run --training.steps {steps} --no-compilation-cache"
        cadence = f"--log.samples-every {every} --checkpoint.every {every}"
        sys.argv = ["train.py", *run.split(), *cadence.split()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return at_first[0], sum(compiled) - at_first[0]


if __name__ == "__main__":
    serve({"count": count})
