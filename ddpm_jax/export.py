"""Export a run to the diffusers layout, as a folder or to the hub.

    python -m ddpm_jax.export --ckpt runs/digits --out my_pipeline
    python -m ddpm_jax.export --ckpt runs/digits --push owner/name --private

    python -m ddpm_jax.export --ckpt runs/style --out style.safetensors

The last line writes the LoRA of a LoRA run alone; a folder gets the network with the LoRA merged.
Both `diffusers.DDPMPipeline.from_pretrained("my_pipeline")` and `sample.py --ckpt my_pipeline`
load the result. A run that draws from prompts is for `diffusers.AutoPipelineForText2Image`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from ddpm_jax.cli import arguments, run_options
from ddpm_jax.cli.run_options import RunOptions
from ddpm_jax.devices import platform
from ddpm_jax.errors import check
from ddpm_jax.files import check_writable
from ddpm_jax.pretrained import hub
from ddpm_jax.runs.export import (
    check_exportable,
    check_free,
    export_lora,
    export_to_temp,
    swap_folder,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """Export a run to the diffusers layout; `--ckpt DIR` names the run."""

    out: Path | None = None
    """The folder to write, or X.safetensors for the LoRA of a run that trained one."""
    overwrite: bool = False
    """Replace an earlier export in the output folder."""
    push: str | None = None
    """A hub repository owner/name to upload to. It is created if it does not exist."""
    dtype: Literal["float32", "float16"] = "float32"
    """Precision of the networks in the files; float16 halves them."""
    private: bool = False
    """Create the repository as a private one; refuse to upload to a public one."""

    def __post_init__(self):
        check(
            self.out is not None or self.push is not None,
            "No destination is given: add --out DIR or --push owner/name.",
        )
        check(
            self.push is not None or not self.private,
            "--private is for --push: add --push owner/name, or leave --private out.",
        )
        if self.out is not None and not self.writes_lora:
            check_free(self.out, self.overwrite)
        check(
            not self.writes_lora or self.push is None,
            "--push uploads a folder: leave --out X.safetensors out.",
        )
        check(
            not self.writes_lora or self.dtype == "float32",
            "A LoRA is written in float32: leave out --dtype, or give a folder as --out.",
        )

    @property
    def writes_lora(self) -> bool:
        """Whether the output is the file of a LoRA."""
        return self.out is not None and self.out.suffix == ".safetensors"


def main(args: list[str]) -> None:
    """Run the command: write the export to --out, upload it to --push, or both."""
    options, run = run_options.parse(ExportOptions, args, "python -m ddpm_jax.export")
    platform.check_devices()
    if options.out is not None and options.writes_lora:
        export_lora(run, options.weights, options.out, options.overwrite)
        print(options.out)
        return
    check_exportable(run.spec)
    if options.push is not None:
        hub.prepare(options.push, options.private)
    beside = None
    if options.out is not None:
        beside = options.out.parent
        check_writable(beside / f"{options.out.name}.new")
    params = run.params(options.weights)
    name = options.push or str(options.out)
    with export_to_temp(run, params, options.weights, name, beside, options.dtype) as folder:
        if options.out is not None:
            # The folder comes first, because an upload may fail for many reasons.
            swap_folder(options.out, folder)
            folder = options.out
            print(options.out)
        if options.push is not None:
            message = f"Step {run.step} of a run"
            address = hub.upload(folder, options.push, private=options.private, message=message)
            print(address)


if __name__ == "__main__":
    arguments.run(main)
