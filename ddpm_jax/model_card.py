"""The README.md of an exported run: what was trained, on what, how long, and how well."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.config import Config, to_json
from ddpm_jax.on_run import TrainedRun
from ddpm_jax.pretrained.scheduler_config import NAME as SCHEDULER
from ddpm_jax.reporting import settings
from ddpm_jax.run_log import read_metrics

LAST = 20
PLACES = ("path", "data_dir")
CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [diffusers, ddpm, unconditional-image-generation, jax, ddpm_jax]
---
# {title}
A U-Net of {parameters:,} parameters that draws {kind} pictures of {size} x {size} pixels, trained for {steps:,} steps
on {data} with [ddpm_jax](https://pypi.org/project/ddpm_jax).

{pictures}

## Use
```python
import diffusers

diffusers.DDPMPipeline.from_pretrained("{name}")(batch_size=4).images
```

```python
import ddpm_jax

ddpm_jax.Pipeline.from_pretrained("{name}")(batch_size=4, seed=0).images
```

## Figures
{figures}

## Recipe
```
{recipe}
```
"""


def write_card(folder: Path, run: TrainedRun, weights: str, name: str) -> None:
    """Writes README.md into the folder of an export, and copies the run's newest samples and its loss beside it."""
    config, model = run.config, run.config.model
    text = CARD.format(
        title=Path(name).name,
        parameters=model.parameter_count(),
        kind="grey" if model.channels == 1 else "colour",
        size=model.image_size,
        steps=run.step,
        data=_data(config),
        pictures="\n".join(f"![{picture.stem}]({picture.name})" for picture in _copy_pictures(run.folder, folder)),
        name=name,
        figures="\n".join(f"- {what}: {value}" for what, value in _figures(folder, run, weights).items()),
        recipe="\n".join(f"{name} {value}" for name, value in settings(_shared(config))),
    )
    (folder / "README.md").write_text(text)


def _copy_pictures(run: Path, folder: Path) -> list[Path]:
    """The newest samples and the loss curve, as they are called in the export; those that there are."""
    found = {"samples.png": sorted((run / "samples").glob("*.png"))[-1:], "loss.png": list(run.glob("loss.png"))}
    return [Path(shutil.copy(paths[0], folder / name)) for name, paths in found.items() if paths]


def _figures(folder: Path, run: TrainedRun, weights: str) -> dict[str, Any]:
    losses = [row["loss"] for row in _metrics(run) if row.get("loss") is not None][-LAST:]
    scheduler = json.loads((folder / "scheduler" / SCHEDULER).read_text())["_class_name"]
    sampling = run.config.sampling
    figures = {
        "weights": f"{weights}, of step {run.step:,}",
        "training loss": f"{np.mean(losses):.4f}, the mean of its last {len(losses)} lines" if losses else "not kept",
        "scheduler": f"{scheduler}; the run's own samples are by {sampling.sampler} in {sampling.steps or 'all'} steps",
    }
    bound = run.folder / "bits_per_dim.json"
    if bound.exists():
        said = json.loads(bound.read_text())
        figures["bits per dimension"] = (
            f"at most {said['bits_per_dim']:.3f} ({said['num']} images, step {said['step']})"
        )
    return figures


def _metrics(run: TrainedRun) -> list[dict]:
    path = run.folder / "metrics.jsonl"
    return [row for row in read_metrics(path) if row["step"] <= run.step] if path.exists() else []


def _data(config: Config) -> str:
    """The data in words, without the folders of this machine."""
    said = config.data.describe()
    for place in filter(None, (getattr(config.data, name, None) for name in PLACES)):
        said = said.replace(str(place), Path(place).name) if Path(place).exists() else said
    return said


def _shared(config: Config) -> Any:
    """The config without the folders of this machine."""
    said = to_json(config)
    said["data"] = {key: value for key, value in said["data"].items() if key not in PLACES}
    return said
