"""The scheduler_config.json of diffusers: what a net was trained for, and the sampler that walks as its scheduler."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import samplers
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.generation.sampling import Sampling, with_learned_variance
from ddpm_jax.pretrained.json_settings import lookup, validate
from ddpm_jax.pretrained.schedulers import (
    CLIPPED,
    LEADING,
    LEGACY,
    OWN_VALUES,
    RESCALED,
    SCHEDULERS,
    THRESHOLDED,
    TRAINED,
    VARIANCES,
    SchedulerSpec,
)

NAME = "scheduler_config.json"
SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squaredcos",
    "sigmoid": "sigmoid",
}
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "linspace"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
ENDS = {"zero": "clean", "sigma_min": "sigma_min"}
MAX_TIMESTEPS = 2**20
UNLIMITED = 1e6
"""A threshold that no pixel reaches."""
DEFAULT_STEPS = 50
"""Steps where the sampler is not ancestral sampling, which takes all; that of diffusers' pipelines."""

SUPPORTED = {*TRAINED, *CLIPPED, *THRESHOLDED, *RESCALED, *LEADING} - {"trained_betas"}
SUPPORTED |= {"use_karras_sigmas", "variance_type", "set_alpha_to_one", "final_sigmas_type"}
"""Keys that are heeded whoever has them."""
IGNORED = LEGACY.union(*(kind.defaults for kind in SCHEDULERS.values()))
"""Keys that a JSON may hold whosever it is."""


class Scheduler(NamedTuple):
    """What a scheduler_config.json says."""

    name: str
    objective: Objective
    sampling: Sampling


def parse_scheduler(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """The objective and the sampling of a scheduler_config.json; raises ValueError for what is not understood.

    `name` has it read as that of another scheduler: what the net was trained for is as its own class says, how to walk
    as the other does with the keys that both have.
    """
    own = str(config.get("_class_name", name))
    name = name or own
    check(
        config.get("predict_epsilon") in (None, True),
        f"{NAME}: predict_epsilon false is not supported",
    )
    walked = _settings(config, own, name)
    for key, value in walked.items():
        kind = SCHEDULERS[name]
        neutral = key in SUPPORTED or key in kind.supported or value == kind.defaults[key]
        check(neutral, f"{NAME}: {key} {repr(value)[:80]} is not supported for {name}")
    return Scheduler(
        name, _objective(_settings(config, own, own)), _sampling(walked, SCHEDULERS[name])
    )


def _settings(config: Mapping[str, Any], own: str, name: str) -> dict[str, Any]:
    """The settings of a scheduler's JSON as another reads them; it may hold keys of any, which diffusers passes on."""
    lookup(SCHEDULERS, own, f"{NAME}: _class_name")
    reader = lookup(SCHEDULERS, name, "scheduler")
    foreign = {
        key
        for key, value in config.items()
        if own != name and key in OWN_VALUES and value not in OWN_VALUES[key].get(name, ())
    }
    read = {key: value for key, value in config.items() if key not in foreign}
    return validate(read, reader.defaults, IGNORED, NAME)


def _objective(said: Mapping[str, Any]) -> Objective:
    timesteps = said["num_train_timesteps"]
    check(
        said["trained_betas"] is None,
        f"{NAME}: trained_betas are not supported, only named schedules",
    )
    check(
        1 <= timesteps <= MAX_TIMESTEPS,
        f"{NAME}: num_train_timesteps {timesteps} is not within 1 to {MAX_TIMESTEPS}",
    )
    learned: dict[str, Any] = {"variance": "learned_range", "loss_kind": "hybrid"}
    variance = said.get("variance_type") or "fixed_small"
    check(
        variance != "learned",
        f"{NAME}: variance_type learned is not supported, whose nets say the variance itself",
    )
    return Objective(
        schedule=lookup(SCHEDULES, said["beta_schedule"], "beta_schedule"),
        timesteps=timesteps,
        beta_start=float(said["beta_start"]),
        beta_end=float(said["beta_end"]),
        zero_terminal_snr=said.get("rescale_betas_zero_snr", False),
        target=lookup(TARGETS, said["prediction_type"], "prediction_type"),
        **(learned if lookup(VARIANCES, variance, "variance_type") == "learned_range" else {}),
    )


def _sampling(said: Mapping[str, Any], kind: SchedulerSpec) -> Sampling:
    sampler, options = kind.sampler(said)
    spacing = lookup(SPACINGS, said.get("timestep_spacing", "linspace"), "timestep_spacing")
    karras = said.get("use_karras_sigmas", False)
    check(
        not karras or kind.whole_karras or spacing == "linspace",
        f"{NAME}: use_karras_sigmas with timestep_spacing {spacing} is not supported for this scheduler",
    )
    few = None if sampler == "ddpm" else min(DEFAULT_STEPS, max(1, said["num_train_timesteps"] - 1))
    return Sampling(
        sampler=sampler,
        options=options,
        steps=few,
        spacing="karras" if karras else spacing,
        offset=said.get("steps_offset", 0) if spacing == "leading" and not karras else 0,
        end=_end(said),
        grid=kind.grid,
        keep_eps=kind.keep_eps,
        **_limits(said),
    )


def _end(said: Mapping[str, Any]) -> Any:
    if "set_alpha_to_one" in said:
        return "clean" if said["set_alpha_to_one"] else "sigma_min"
    return (
        lookup(ENDS, said["final_sigmas_type"], "final_sigmas_type")
        if "final_sigmas_type" in said
        else None
    )


def _limits(said: Mapping[str, Any]) -> dict[str, Any]:
    """How x0 is limited: thresholds that may not exceed 1 are a clip to [-1, 1]."""
    if said.get("thresholding"):
        most = float(said["sample_max_value"])
        check(most >= 1, f"{NAME}: sample_max_value {most} is not supported: it must be at least 1")
        ratio = float(said["dynamic_thresholding_ratio"])
        limit = None if most >= UNLIMITED else most
        return (
            {"dynamic_threshold": ratio, "threshold_limit": limit}
            if most > 1
            else {"clip_x0": True}
        )
    clipped, limit = said.get("clip_sample", False), said.get("clip_sample_range", 1.0)
    check(
        not clipped or limit == 1,
        f"{NAME}: clip_sample_range {limit} is not supported: pictures are in [-1, 1]",
    )
    return {"clip_x0": clipped}


def scheduler_config(
    objective: Objective, sampling: Sampling, for_pipeline: bool = False
) -> dict[str, Any]:
    """The scheduler_config.json that has diffusers walk as the sampling does, number of steps and guidance apart.

    Where no scheduler does, it is that of DDPMScheduler; with `for_pipeline` also where DDPMPipeline could not call it.
    Raises ValueError for what no net of diffusers is trained for.
    """
    trained = _trained(objective)
    sampling = with_learned_variance(objective, sampling)
    for wanted in (sampling, ancestral(objective, sampling)):
        for name, kind in SCHEDULERS.items():
            fits = (kind.in_pipeline or not for_pipeline) and (
                kind.steps_x0 or objective.target != "x0"
            )
            for choice in kind.choices if fits else ():
                config = {
                    "_class_name": name,
                    **kind.defaults,
                    **_said(trained, wanted, kind),
                    **choice,
                }
                if _says(config, objective, wanted):
                    return config
    raise ValueError(f"no scheduler of diffusers can be written for {objective} and {sampling}")


def _says(config: Mapping[str, Any], objective: Objective, sampling: Sampling) -> bool:
    """Whether a JSON, read again, is of this objective and of this walk."""
    try:
        found = parse_scheduler(config)
    except ValueError:
        return False
    same = found.objective.learns_variance == objective.learns_variance and _trained(
        found.objective
    ) == _trained(objective)
    return same and _grid_kind(found.sampling) == _grid_kind(sampling)


def ancestral(objective: Objective, sampling: Sampling) -> Sampling:
    """Ancestral sampling, as near to the sampling as a DDPMScheduler can be."""
    said = {"variance": objective.variance} if objective.learns_variance else sampling.options
    return Sampling(
        options={key: value for key, value in said.items() if key == "variance"},
        spacing=sampling.spacing if sampling.spacing in SPACINGS else "trailing",
        clip_x0=sampling.clip_x0,
        dynamic_threshold=sampling.dynamic_threshold,
        threshold_limit=sampling.threshold_limit,
    )


def _trained(objective: Objective) -> dict[str, Any]:
    """The keys that say what a net was trained for."""
    schedules, targets = _inverse(SCHEDULES), _inverse(TARGETS)
    for what, names in ((objective.schedule, schedules), (objective.target, targets)):
        check(what in names, f"diffusers has no {what}: only {', '.join(names)} can be written")
    check(
        objective.variance != "learned",
        "diffusers has no log variance that is learned: only learned_range",
    )
    return {
        "beta_schedule": schedules[objective.schedule],
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "num_train_timesteps": objective.timesteps,
        "prediction_type": targets[objective.target],
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
    }


def _said(trained: Mapping[str, Any], sampling: Sampling, kind: SchedulerSpec) -> dict[str, Any]:
    """Those of the keys of a scheduler that all schedulers mean alike."""
    karras, thresholded = sampling.spacing == "karras", sampling.dynamic_threshold is not None
    said = {
        **trained,
        "timestep_spacing": "linspace" if karras else sampling.spacing,
        "use_karras_sigmas": karras,
        "steps_offset": sampling.leading_offset,
        "clip_sample": sampling.clip_x0 and not thresholded,
        "thresholding": thresholded or (sampling.clip_x0 and "clip_sample" not in kind.defaults),
        "dynamic_thresholding_ratio": sampling.dynamic_threshold or 0.995,
        "sample_max_value": sampling.threshold_limit or (UNLIMITED if thresholded else 1.0),
    }
    return {key: value for key, value in said.items() if key in kind.defaults}


def _grid_kind(sampling: Sampling) -> tuple:
    """What of a sampling a scheduler says: all but the number of steps, guidance, the grid and `compat`."""
    own_end = "sigma_min" if sampling.grid.endswith("to_0") else "clean"
    threshold = (sampling.dynamic_threshold, sampling.threshold_limit)
    clipped = sampling.clip_x0 and sampling.dynamic_threshold is None
    defaults = {
        p.name: p.default
        for p in inspect.signature(samplers.factory(sampling.sampler)).parameters.values()
    }
    options = defaults | dict(sampling.options)
    options.pop("compat", None)
    return (
        sampling.sampler,
        options,
        sampling.spacing,
        sampling.leading_offset,
        sampling.end or own_end,
        clipped,
        threshold,
    )


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
