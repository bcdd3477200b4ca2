"""Export a run in the diffusers layout, to a folder or to the hub."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from ddpm_jax.config import Config
from ddpm_jax.devices import hosts, parallel
from ddpm_jax.errors import check, one_line
from ddpm_jax.files import check_writable
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.models import Params
from ddpm_jax.pretrained import hub, pipeline_folder
from ddpm_jax.pretrained.lora_files import save_lora, split_parts
from ddpm_jax.pretrained.scheduler_config import find_scheduler
from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion
from ddpm_jax.runs import saved_steps
from ddpm_jax.runs.model_card import PICTURES, write_card
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.runs.text_model import open_text_model
from ddpm_jax.runs.weights import DEFAULT_WEIGHTS, load_params
from ddpm_jax.training.step import TrainState

PARTS = {"unet", "scheduler", "vae", "text_encoder", "tokenizer"}
FILES = {"README.md", *PICTURES, hub.INDEX, hub.OWN_SETTINGS, *PARTS}
"""Names at the top of an export. A folder with any other name in it is never overwritten."""


def check_free(out: Path, overwrite: bool) -> None:
    """Raise ValueError if `out` holds anything, except an export with `overwrite`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        is_export = out.is_dir() and {path.name for path in out.iterdir()} <= FILES
        remedy = "choose another --out" + (", or add --overwrite" if is_export else "")
        check(is_export and overwrite, f"The output {out} exists already: {remedy}.")


def export_lora(run: RunSource, weights: str, out: Path, overwrite: bool) -> None:
    """Write the LoRA of a run to a file, without its base.

    Raise ValueError if the run trained no LoRA, or if the file exists, except with `overwrite`.
    """
    check(
        run.trains_lora,
        f"The run {run.folder} trained no LoRA, but all parameters: give a folder as --out.",
    )
    remedy = "choose another --out, or add --overwrite"
    check(overwrite or not out.exists(), f"The output {out} exists already: {remedy}.")
    check_writable(out)
    lora = load_params(run.config, run.folder, run.step, weights)
    save_lora(out, *split_parts(run.config.model, lora), run.config.lora)


@contextmanager
def export_to_temp(
    run: RunSource,
    params: Params,
    weights: str,
    name: str,
    beside: Path | None = None,
    dtype: str = "float32",
) -> Iterator[Path]:
    """Export a run to a temporary folder, and remove it after the block.

    The temporary folder is created in `beside` if given, so that the export can be renamed to
    another path on that disk. `weights` and `name` are for the model card. `dtype` is that of the
    networks in the files.
    """
    with tempfile.TemporaryDirectory(prefix=".ddpm_jax-", dir=beside) as temporary:
        folder = Path(temporary) / "new"
        scheduler = _save(run, params, folder, dtype)
        write_card(folder, run, weights, name, scheduler)
        yield folder


def _save(run: RunSource, params: Params, folder: Path, dtype: str) -> str:
    """Write the networks and the scheduler of a run. Return the name of the scheduler."""
    if isinstance(run.config, LatentConfig):
        model = open_text_model(run, params)
        save_stable_diffusion(model, folder, dtype)
        return str(model.scheduler["_class_name"])
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return pipeline_folder.save_pretrained(
        run.spec, params, folder, classes=run.classes, values=run.values, for_pipeline=True
    )


def check_exportable(spec: ModelSpec) -> None:
    """Raise ValueError if diffusers cannot hold the network or the objective."""
    if isinstance(spec, LatentConfig):
        find_scheduler(spec.objective, spec.sampling)
    else:
        pipeline_folder.check_exportable(spec)


def swap_folder(out: Path, folder: Path) -> None:
    """Replace `out` by a folder on the same disk. On failure, restore `out`."""
    old = folder.with_name("old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def prepare_upload(repo: str, private: bool, config: Config) -> None:
    """Create the repository unless it exists.

    Raise ValueError if diffusers cannot hold the network, and ValueError, ImportError or OSError
    if the repository cannot be written to.
    """
    check_exportable(config)
    if hosts.is_primary():
        hub.prepare(repo, private)


def make_uploader(
    repo: str, private: bool, config: Config, folder: Path
) -> Callable[[int, TrainState], None]:
    """Make the callback (step, state) that uploads the averaged parameters during training.

    The step must have been saved. A failed upload is reported on stderr, and training continues.
    """

    def upload_ema(step: int, state: TrainState) -> None:
        # All hosts gather the parameters; only the primary one uploads.
        params = parallel.gather_to_host(state.ema_params[DEFAULT_WEIGHTS])
        if hosts.is_primary():
            _upload(repo, private, RunSource(folder, step, config), params)

    return upload_ema


def _upload(repo: str, private: bool, run: RunSource, params: Params) -> None:
    try:
        check(run.step in saved_steps.steps(run.folder), "it was not saved")
        with export_to_temp(run, params, DEFAULT_WEIGHTS, repo) as folder:
            hub.upload(folder, repo, private=private, message=f"Step {run.step}")
    except Exception as error:
        # No failure of an upload, of whatever kind, is worth losing the training run.
        reason = one_line(error).rstrip(".")
        print(f"Step {run.step} was not uploaded, training continues: {reason}.", file=sys.stderr)
