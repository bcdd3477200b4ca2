"""A run as a model in the layout of diffusers, for its pipelines and for the hub.

    python -m ddpm_jax.export --ckpt runs/digits --out my_pipeline
    python -m ddpm_jax.export --ckpt runs/digits --push owner/name --private

`diffusers.DDPMPipeline.from_pretrained("my_pipeline")` opens it, and `sample.py --ckpt my_pipeline`.
"""

import dataclasses
import sys
from pathlib import Path

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import RunOptions
from ddpm_jax.errors import check
from ddpm_jax.pretrained import hub, pipeline_folder
from ddpm_jax.runs.export import check_free, export_to_temp, swap_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """What to write and where; `--ckpt DIR` names the run."""

    out: Path | None = None
    """The folder to write."""
    overwrite: bool = False
    """Write over an earlier export."""
    push: str | None = None
    """A repository of the hub to upload to, owner/name; made if it is not there."""
    private: bool = False
    """Make that one private."""

    def __post_init__(self):
        check(
            self.out is not None or self.push is not None,
            "say where to: --out DIR, or --push owner/name",
        )
        check(self.push is not None or not self.private, "--private is for --push")
        if self.out is not None:
            check_free(self.out, self.overwrite)


def main(args: list[str]) -> None:
    """Writes, and uploads, what the command line says."""
    wanted, run = run_options.parse(ExportOptions, args, "python -m ddpm_jax.export")
    pipeline_folder.check_possible(run.recipe)
    if wanted.push is not None:
        hub.prepare(wanted.push, wanted.private)
    if wanted.out is not None:
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
    beside = None if wanted.out is None else wanted.out.parent
    with export_to_temp(
        run, run.params(wanted.weights), wanted.weights, wanted.push or str(wanted.out), beside
    ) as folder:
        if wanted.push is not None:
            print(
                hub.upload(
                    folder, wanted.push, private=wanted.private, message=f"Step {run.step} of a run"
                )
            )
        if wanted.out is not None:
            swap_folder(wanted.out, folder)
            print(wanted.out)


if __name__ == "__main__":
    with arguments.one_line_errors("--debug" in sys.argv):
        main(sys.argv[1:])
