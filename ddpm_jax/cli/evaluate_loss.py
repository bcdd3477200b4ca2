"""Compare the loss that a run has logged with that of its recipe."""

from pathlib import Path

from ddpm_jax.cli.evaluate_outputs import picture_path
from ddpm_jax.cli.recipes import FOLDER
from ddpm_jax.cli.recipes import loss_curves as recipe_curves
from ddpm_jax.cli.run_options import image_config
from ddpm_jax.evaluation import loss_curves
from ddpm_jax.figures import plots
from ddpm_jax.files import check_writable
from ddpm_jax.runs.directory import EVALUATION
from ddpm_jax.runs.metrics import METRICS, read_metrics
from ddpm_jax.runs.sources import RunSource, Source
from ddpm_jax.training.loss_bands import band_edges


def compare_loss(source: Source, out: Path | None, recipes: Path = FOLDER) -> None:
    """Compare the logged loss of a run with the curve of its recipe, and print and plot the result.

    Raise ValueError if no recipe with a loss curve has its settings, or if it logged too little.
    """
    if not isinstance(source, RunSource):
        raise ValueError("Only a run has logged its loss: give its directory to --ckpt.")
    config = image_config(source)
    name, theirs = loss_curves.find_curve(config, recipe_curves(recipes))
    ours = loss_curves.make_curve(read_metrics(source.folder / METRICS))
    timesteps = config.objective.timesteps
    verdict = loss_curves.describe(name, loss_curves.compare(theirs, ours), timesteps)
    path = picture_path(out or source.folder / EVALUATION, "loss.png")
    check_writable(path)
    edges = band_edges(timesteps)
    titles = [f"t from {edges[i]} to {edges[i + 1] - 1}" for i in range(len(edges) - 1)]
    curves = [(f"recipe {name}", *theirs[:2]), (str(source.folder), *ours[:2])]
    plots.band_curves(curves, theirs.spread, titles, path, "Loss by band of t")
    print(verdict)
    print(path)
