"""Write the README.md of an exported run: the network, its data, training, figures and recipe."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data import describe_classes
from ddpm_jax.data.values import LEVELS
from ddpm_jax.evaluation.results import (
    LABELS,
    cell,
    images_of,
    measures_samples,
    numbers_of,
    read_result,
)
from ddpm_jax.generation.sampling import step_count
from ddpm_jax.latent_config import LatentConfig
from ddpm_jax.pretrained.pipeline_folder import shipped_networks
from ddpm_jax.runs.directory import EVALUATION
from ddpm_jax.runs.grids import shortened
from ddpm_jax.runs.metrics import METRICS, read_metrics
from ddpm_jax.runs.progress import settings_as_flags
from ddpm_jax.runs.sources import RunSource
from ddpm_jax.settings_json import to_json

LOSS_LINES = 20
"""Number of last logged losses whose mean is the training loss in the card."""
SAMPLES, LOSS = PICTURES = ("samples.png", "loss.png")
"""The pictures of an export."""

CARD = """---
library_name: diffusers
pipeline_tag: {task}
tags: [diffusers, ddpm, {task}, jax, ddpm_jax]
{base}---
# {title}
{network} {kind} images of {size} pixels,
trained for {steps:,} steps on {data} with [ddpm_jax](https://pypi.org/project/ddpm_jax).

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
USE_DIFFUSERS = """```python
import diffusers

diffusers.DDPMPipeline.from_pretrained("{name}")(batch_size=4, num_inference_steps={steps}).images
```

"""
PROMPT_DIFFUSERS = """```python
import diffusers

pipeline = diffusers.AutoPipelineForText2Image.from_pretrained("{name}")
pipeline("a prompt", num_inference_steps={steps}, guidance_scale={guidance:g}).images
```

"""
PROMPT_DDPM_JAX = """```python
import ddpm_jax

pipeline = ddpm_jax.Pipeline.from_pretrained("{name}")
pipeline("a prompt", steps={steps}, guidance_scale={guidance:g}).images
```"""
USE_DDPM_JAX = """```python
import ddpm_jax

ddpm_jax.Pipeline.from_pretrained("{name}")(batch_size=4, seed=0, steps={steps}).images
```"""


def write_card(folder: Path, run: RunSource, weights: str, name: str, scheduler: str) -> None:
    """Write README.md to the folder of an export, and copy the run's samples and loss plot.

    `name` is the folder or repository from which the export will be loaded.
    """
    config = run.config
    assert isinstance(config, Config)
    draws_text = isinstance(config, LatentConfig)
    shown = config.autoencoder.model if isinstance(config, LatentConfig) else config.model
    pictures = _copy_pictures(run, folder)
    figures = _figures(run, config, weights, scheduler)
    flags = settings_as_flags(to_json(config))
    text = CARD.format(
        base=_base_model(config),
        title=Path(name).name,
        network=_network(config),
        task="text-to-image" if draws_text else "unconditional-image-generation",
        kind={1: "grey", 3: "colour"}.get(shown.channels, f"{shown.channels}-channel"),
        size=" x ".join(map(str, shown.image_shape[:2])),
        steps=run.step,
        data=_describe_data(config),
        pictures="\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures),
        use=_use(config, name),
        figures="\n".join(f"- {title}: {value}" for title, value in figures.items()),
        recipe="\n".join(
            f"{flag} {value}".rstrip()
            for flag, value in flags
            if not any(map(_is_local, shlex.split(value)))
        ),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _network(config: Config) -> str:
    """The networks with their sizes, and the verb of what they do."""
    count = f"{config.model.parameter_count():,} parameters"
    if not isinstance(config, LatentConfig):
        return f"A U-Net of {count} that draws"
    autoencoder = f"{config.autoencoder.model.parameter_count():,}"
    return f"A text encoder and a U-Net of {count} with an autoencoder of {autoencoder} that draw"


def _base_model(config: Config) -> str:
    """The card's line with the hub repository that training started from, if there is one."""
    base = config.training.init_from
    if base is None or base in shipped_networks() or _is_local(base) or Path(base).exists():
        return ""
    return f"base_model: {base}\n"


def _use(config: Config, name: str) -> str:
    """Code that draws images.

    A network with classes gets no code for diffusers, whose DDPMPipeline takes no labels.
    """
    steps = step_count(config.objective, config.sampling)
    templates = [USE_DIFFUSERS, USE_DDPM_JAX]
    if isinstance(config, LatentConfig):
        templates = [PROMPT_DIFFUSERS, PROMPT_DDPM_JAX]
    if config.model.num_classes:
        templates = [USE_DDPM_JAX]
    values = {"name": name, "steps": steps, "guidance": config.sampling.guidance_scale}
    return "".join(template.format(**values) for template in templates)


def _copy_pictures(run: RunSource, folder: Path) -> list[Path]:
    """Copy the loss plot and the newest samples up to the run's step. Return the copies."""
    grids = (path for path in run.folder.glob("samples/*.png") if path.stem.isdecimal())
    sources = {
        SAMPLES: max((path for path in grids if int(path.stem) <= run.step), default=None),
        LOSS: run.folder / LOSS,
    }
    return [
        Path(shutil.copy(source, folder / name))
        for name, source in sources.items()
        if source is not None and source.exists()
    ]


def _figures(run: RunSource, config: Config, weights: str, scheduler: str) -> dict[str, Any]:
    losses = [row["loss"] for row in _metrics(run) if row.get("loss") is not None][-LOSS_LINES:]
    loss = "not logged"
    if losses:
        loss = f"{np.mean(losses):.4f}, the mean of the last {len(losses)} logged losses"
    sampling = shortened(config)
    steps = step_count(config.objective, sampling)
    samples = f"the run's samples are drawn by {sampling.sampler} in {steps} steps"
    figures = {
        "weights": f"{weights}, of step {run.step:,}",
        "training loss": loss,
        "scheduler": f"{scheduler}; {samples}",
    }
    if config.model.num_classes is not None and run.classes is not None:
        figures["classes"] = describe_classes(run.classes)
    if run.values != LEVELS:
        figures["values of the data"] = run.values.describe()
    return figures | _measures(run, weights)


def _measures(run: RunSource, weights: str) -> dict[str, str]:
    """The numbers of these weights in the run's evaluation, and how they were made."""
    path = run.folder / EVALUATION
    if not path.exists():
        return {}
    result = read_result(path)
    if result.get("step") is None or result.get("weights") != weights:
        # Images from elsewhere were measured, or another average.
        return {}
    measures = {}
    for key in numbers_of(result):
        made_with = [f"step {result['step']:,}"]
        if images_of(result, key) != "-":
            made_with.insert(0, f"{images_of(result, key)} images")
        if measures_samples(key):
            sampling = result["sampling"]
            made_with.append(f"{sampling['sampler']} with {sampling['steps']} steps")
            made_with.append(f"features {result['features']}")
        measures[LABELS[key]] = f"{cell(result, key)} ({', '.join(made_with)})"
    return measures


def _metrics(run: RunSource) -> list[dict]:
    """The lines of metrics.jsonl up to the run's step."""
    path = run.folder / METRICS
    if not path.exists():
        return []
    return [row for row in read_metrics(path) if row["step"] <= run.step]


def _describe_data(config: Config) -> str:
    """The data source in words. Folders on this machine are reduced to their names."""
    description = config.data.describe()
    for field in ("path", "data_dir"):
        place = str(getattr(config.data, field, ""))
        if _is_local(place):
            description = description.replace(place, Path(place).name)
    return description


def _is_local(value: str) -> bool:
    """Whether a setting is a path on this machine, which does not belong in a published card."""
    if value.startswith(("/", "~")):
        return True
    try:
        return "/" in value and Path(value).exists()
    # Captions are longer than any path.
    except OSError:
        return False
