"""The scheduler of a latent diffusion model: its JSON as diffusers' pipelines read and write it."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained import scheduler_config
from ddpm_jax.pretrained.scheduler_config import Scheduler, parse_scheduler
from ddpm_jax.pretrained.schedulers import SCHEDULERS, TRAINING

STEPS = 50
GUIDANCE_SCALE = 7.5
"""The defaults of diffusers' pipelines."""
FORCED = {"steps_offset": 1, "clip_sample": False}
"""Settings that diffusers' pipelines force on the scheduler of a folder that has them."""
ZERO_SNR = "rescale_betas_zero_snr"
FORCED_TO_INPAINT = {"skip_prk_steps": True}
"""Settings that its pipeline which inpaints forces, too."""


def as_pipeline_reads(config: Mapping[str, Any], name: str, inpaints: bool) -> dict[str, Any]:
    """A scheduler's JSON as a pipeline reads it whose model_index.json names the class `name`."""
    config = {**config, "_class_name": name}
    if not inpaints:
        return config
    defaults = SCHEDULERS[name].defaults
    return _forced(config, {k: value for k, value in FORCED_TO_INPAINT.items() if k in defaults})


def _forced(config: Mapping[str, Any], forced: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's JSON with settings that count even if it lists them as mere defaults."""
    left_out = config.get("_use_default_values")
    if not isinstance(left_out, list):
        return {**config, **forced}
    kept = [key for key in left_out if isinstance(key, str) and key not in forced]
    return {**config, **forced, "_use_default_values": kept}


def converted(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The JSON of a scheduler as one of another class, `name`.

    The noise schedule and the target stay the same. The defaults of two schedulers may differ, so
    settings of training that the JSON leaves out are written with the first one's defaults. A JSON
    with zero terminal SNR stays as it is if the other scheduler has no key for it.
    """
    own = SCHEDULERS[config["_class_name"]]
    left_out = config.get("_use_default_values")
    listed = left_out if isinstance(left_out, list) else []
    given = set(config) - {key for key in listed if isinstance(key, str)}
    has_zero_snr = ZERO_SNR in own.defaults and ZERO_SNR in given and config[ZERO_SNR]
    loses_zero_snr = has_zero_snr and ZERO_SNR not in SCHEDULERS[name].defaults
    if name == config["_class_name"] or loses_zero_snr:
        return dict(config)
    training = {
        key: config[key] if key in given else own.defaults[key]
        for key in TRAINING
        if key in own.defaults
    }
    return _forced({**config, "_class_name": name}, training)


def parse_latent_scheduler(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """Read a scheduler's JSON as diffusers' pipelines do; with `name`, as that scheduler would.

    Keys in the JSON are read by the other scheduler too; missing ones get its own defaults. Latents
    are clipped only by `thresholding`. The sampling has 50 steps and guidance 7.5. Raise ValueError
    as `parse_scheduler` does.
    """
    own = SCHEDULERS.get(str(config.get("_class_name")))
    forced = {key: value for key, value in FORCED.items() if own and key in own.defaults}
    parsed = parse_scheduler(_forced(config, forced), name)
    # The default of clip_sample is to clip in some schedulers that lack the key in the JSON.
    clips = parsed.sampling.clip_x0 and config.get("thresholding") is True
    sampling = dataclasses.replace(
        parsed.sampling,
        clip_x0=clips,
        steps=max(1, min(STEPS, parsed.objective.timesteps - 1)),
        guidance_scale=GUIDANCE_SCALE,
    )
    return parsed._replace(sampling=sampling)


def latent_scheduler_config(objective: Objective, sampling: Sampling) -> dict[str, Any]:
    """The scheduler's JSON of `find_scheduler`, with the settings that diffusers forces on it."""
    config = scheduler_config.find_scheduler(objective, sampling)
    return {**config, **{key: value for key, value in FORCED.items() if key in config}}


def with_sampler(sampling: Sampling, config: Mapping[str, Any], sampler: str) -> Sampling:
    """A model's sampling by another sampler, whose own settings are those of `sampling_for`.

    So are the limits of x0, unless the model's differ from those of its scheduler.
    """
    own = sampling_for(config)
    other = sampling_for(config, sampler)
    names = "sampler options spacing timesteps offset end grid keep_eps".split()
    limits = "clip_x0 dynamic_threshold threshold_limit".split()
    if all(getattr(sampling, name) == getattr(own, name) for name in limits):
        names += limits
    changes = {name: getattr(other, name) for name in names}
    return dataclasses.replace(sampling, steps=sampling.steps or other.steps, **changes)


def sampling_for(config: Mapping[str, Any], sampler: str | None = None) -> Sampling:
    """The sampling of a scheduler's JSON, by its own sampler or by another one.

    If a scheduler of diffusers is the other sampler, it reads the JSON, without the values that
    would make it another one. Otherwise the sampler gets its own default options, grid and end.
    """
    own = parse_latent_scheduler(config).sampling
    if sampler in (None, own.sampler):
        return own
    for name, spec in SCHEDULERS.items():
        for choice in spec.choices:
            if spec.sampler({**spec.defaults, **choice})[0] != sampler:
                continue
            with contextlib.suppress(ValueError):
                sampling = parse_latent_scheduler(config, name).sampling
                if sampling.sampler == sampler:
                    return sampling
            kept = {key: {**spec.defaults, **choice}[key] for key in spec.supported}
            return parse_latent_scheduler(_forced(config, kept), name).sampling
    return own.override(sampler=sampler)
