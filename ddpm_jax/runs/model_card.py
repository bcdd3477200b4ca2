"""The README.md of an exported run: what was trained, on what, how long, and how well."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.config import Config, to_json
from ddpm_jax.generation.sampling import step_count
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.progress import settings
from ddpm_jax.runs.sources import RunSource

LAST = 20
PICTURES = {"samples.png": "samples/*.png", "loss.png": "loss.png"}
"""Pictures of an export, and those of a run that they are the newest of."""

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [diffusers, ddpm, unconditional-image-generation, jax, ddpm_jax]
{base}---
# {title}
A U-Net of {parameters:,} parameters that draws {kind} pictures of {size} x {size} pixels, trained for {steps:,} steps
on {data} with [ddpm_jax](https://pypi.org/project/ddpm_jax).

{pictures}

## Use
{use}

## Figures
{figures}

## Recipe
```
{recipe}
```
"""
WITH_DIFFUSERS = """```python
import diffusers

diffusers.DDPMPipeline.from_pretrained("{name}")(batch_size=4, num_inference_steps={steps}).images
```

"""
WITH_DDPM_JAX = """```python
import ddpm_jax

ddpm_jax.Pipeline.from_pretrained("{name}")(batch_size=4, seed=0, steps={steps}).images
```"""


def write_card(folder: Path, run: RunSource, weights: str, name: str, scheduler: str) -> None:
    """Writes README.md into the folder of an export, and copies the run's newest samples and its loss beside it."""
    config, model = run.config, run.config.model
    base, pictures = config.training.init_from, _copy_pictures(run.folder, folder)
    text = CARD.format(
        base=""
        if base is None or _is_here(base) or Path(base).exists()
        else f"base_model: {base}\n",
        title=Path(name).name,
        parameters=model.parameter_count(),
        kind="grey" if model.channels == 1 else "colour",
        size=model.image_size,
        steps=run.step,
        data=_data(config),
        pictures="\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures),
        use=_use(config, name),
        figures="\n".join(
            f"- {what}: {value}" for what, value in _figures(run, weights, scheduler).items()
        ),
        recipe="\n".join(
            f"{name} {value}" for name, value in settings(to_json(config)) if not _is_here(value)
        ),
    )
    (folder / "README.md").write_text(text)


def _use(config: Config, name: str) -> str:
    """How to draw with it; DDPMPipeline of diffusers gives no classes to a network."""
    steps = step_count(config.objective, config.sampling)
    ways = (WITH_DDPM_JAX,) if config.model.num_classes else (WITH_DIFFUSERS, WITH_DDPM_JAX)
    return "".join(way.format(name=name, steps=steps) for way in ways)


def _copy_pictures(run: Path, folder: Path) -> list[Path]:
    """The newest samples and the loss curve, as they are called in the export; those that there are."""
    found = {name: sorted(run.glob(pattern))[-1:] for name, pattern in PICTURES.items()}
    return [Path(shutil.copy(paths[0], folder / name)) for name, paths in found.items() if paths]


def _figures(run: RunSource, weights: str, scheduler: str) -> dict[str, Any]:
    losses = [row["loss"] for row in _metrics(run) if row.get("loss") is not None][-LAST:]
    sampling = run.config.sampling
    figures = {
        "weights": f"{weights}, of step {run.step:,}",
        "training loss": f"{np.mean(losses):.4f}, the mean of its last {len(losses)} lines"
        if losses
        else "not kept",
        "scheduler": f"{scheduler}; the run's own samples are by {sampling.sampler} in {sampling.steps or 'all'} steps",
    }
    bound = run.folder / "bits_per_dim.json"
    if bound.exists():
        said = json.loads(bound.read_text())
        figures["bits per dimension"] = (
            f"at most {said['bits_per_dim']:.3f} ({said['num']} images, step {said['step']})"
        )
    return figures


def _metrics(run: RunSource) -> list[dict]:
    path = run.folder / "metrics.jsonl"
    return [row for row in read_metrics(path) if row["step"] <= run.step] if path.exists() else []


def _data(config: Config) -> str:
    """The data in words, without the folders of this machine."""
    said = config.data.describe()
    for place in filter(
        _is_here, (str(getattr(config.data, name, "")) for name in ("path", "data_dir"))
    ):
        said = said.replace(place, Path(place).name)
    return said


def _is_here(value: str) -> bool:
    """Whether a setting is a path on this machine, of which others need not know."""
    return value.startswith(("/", "~")) or ("/" in value and Path(value).exists())
