"""Read a scheduler_config.json of diffusers as an objective and a sampling, and write one."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import samplers
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling, with_learned_variance
from ddpm_jax.pretrained.json_settings import lookup, validate
from ddpm_jax.pretrained.schedulers import (
    CLIPPING,
    LEADING,
    LEGACY_KEYS,
    SCHEDULERS,
    THRESHOLDING,
    TRAINING,
    VALUES_BY_SCHEDULER,
    VARIANCES,
    ZERO_SNR,
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
"""Steps of all samplers except `ddpm`, as in diffusers' pipelines. `ddpm` takes all T."""

SUPPORTED = {*TRAINING, *CLIPPING, *THRESHOLDING, *ZERO_SNR, *LEADING} - {"trained_betas"}
SUPPORTED |= {"use_karras_sigmas", "variance_type", "set_alpha_to_one", "final_sigmas_type"}
"""Keys honoured for every scheduler."""
IGNORED = LEGACY_KEYS.union(*(spec.defaults for spec in SCHEDULERS.values()))
"""Keys allowed in the JSON of every scheduler. A scheduler ignores the keys that it lacks."""


class Scheduler(NamedTuple):
    """A scheduler_config.json in our terms."""

    name: str
    objective: Objective
    sampling: Sampling


def parse_scheduler(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """Read the objective and the sampling of a scheduler_config.json.

    With `name`, the sampling is read as that scheduler would read it, with the keys that both have;
    the objective is still read as the config's own class reads it.
    Raise ValueError for an unknown scheduler, and for unsupported keys or values.
    """
    own_name = str(config.get("_class_name", name))
    name = name or own_name
    if config.get("predict_epsilon") not in (None, True):
        raise ValueError(
            f"{NAME}: predict_epsilon false is not supported: write prediction_type sample instead."
        )
    settings = _settings(config, own_name, name)
    spec = SCHEDULERS[name]
    for key, value in settings.items():
        default = spec.defaults[key]
        if key in SUPPORTED or key in spec.supported or value == default:
            continue
        text = repr(value)[:80]
        raise ValueError(
            f"{NAME}: {key} {text} is not supported for {name}: it must be {default!r}."
        )
    objective = _objective(_settings(config, own_name, own_name))
    return Scheduler(name, objective, _sampling(settings, spec))


def _settings(config: Mapping[str, Any], own_name: str, name: str) -> dict[str, Any]:
    """The settings of the scheduler `own_name` as the scheduler `name` reads them.

    The JSON may hold keys of any scheduler, because diffusers keeps them when it converts one. A
    value that only other schedulers know is read as the default, as in diffusers.
    """
    lookup(SCHEDULERS, own_name, f"{NAME}: _class_name")
    spec = lookup(SCHEDULERS, name, "scheduler")
    unknown_here = {
        key
        for key, value in config.items()
        if key in VALUES_BY_SCHEDULER
        and value not in VALUES_BY_SCHEDULER[key].get(name, ())
        and (own_name != name or value in sum(VALUES_BY_SCHEDULER[key].values(), ()))
    }
    known = {key: value for key, value in config.items() if key not in unknown_here}
    return validate(known, spec.defaults, IGNORED, NAME)


def _objective(settings: Mapping[str, Any]) -> Objective:
    timesteps = settings["num_train_timesteps"]
    if settings["trained_betas"] is not None:
        raise ValueError(f"{NAME}: trained_betas is not supported: only named schedules are.")
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        limits = f"from 1 to {MAX_TIMESTEPS}"
        raise ValueError(f"{NAME}: num_train_timesteps {timesteps} is not {limits}.")
    variance_type = settings.get("variance_type") or "fixed_small"
    if variance_type == "learned":
        raise ValueError(f"{NAME}: variance_type learned is not supported: only learned_range is.")
    schedule = lookup(SCHEDULES, settings["beta_schedule"], "beta_schedule")
    target = lookup(TARGETS, settings["prediction_type"], "prediction_type")
    learned: dict[str, Any] = {}
    if lookup(VARIANCES, variance_type, "variance_type") == "learned_range":
        learned = {"variance": "learned_range", "loss_kind": "hybrid"}
    return Objective(
        schedule=schedule,
        timesteps=timesteps,
        beta_start=float(settings["beta_start"]),
        beta_end=float(settings["beta_end"]),
        zero_terminal_snr=settings.get("rescale_betas_zero_snr", False),
        target=target,
        **learned,
    )


def _sampling(settings: Mapping[str, Any], spec: SchedulerSpec) -> Sampling:
    sampler, options = spec.sampler(settings)
    spacing = lookup(SPACINGS, settings.get("timestep_spacing", "linspace"), "timestep_spacing")
    karras = settings.get("use_karras_sigmas", False)
    if karras and not spec.full_karras_range and spacing != "linspace":
        raise ValueError(
            f"{NAME}: use_karras_sigmas with timestep_spacing {spacing} is not supported "
            "for this scheduler: only linspace is."
        )
    steps = None
    if sampler != "ddpm":
        steps = min(DEFAULT_STEPS, max(1, settings["num_train_timesteps"] - 1))
    return Sampling(
        sampler=sampler,
        options=options,
        steps=steps,
        spacing="karras" if karras else spacing,
        offset=settings.get("steps_offset", 0) if spacing == "leading" and not karras else 0,
        end=_end(settings),
        grid=spec.grid,
        keep_eps=spec.keep_eps,
        **_x0_limits(settings),
    )


def _end(settings: Mapping[str, Any]) -> Any:
    if "set_alpha_to_one" in settings:
        return "clean" if settings["set_alpha_to_one"] else "sigma_min"
    if "final_sigmas_type" in settings:
        return lookup(ENDS, settings["final_sigmas_type"], "final_sigmas_type")
    return None


def _x0_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `Sampling` that clip x0."""
    if settings.get("thresholding"):
        maximum = float(settings["sample_max_value"])
        if not maximum >= 1:
            raise ValueError(
                f"{NAME}: sample_max_value {maximum} is not supported: it must be at least 1."
            )
        quantile = float(settings["dynamic_thresholding_ratio"])
        # A threshold that may not exceed 1 is a clip to [-1, 1].
        if not maximum > 1:
            return {"clip_x0": True}
        limit = None if maximum >= UNLIMITED else maximum
        return {"dynamic_threshold": quantile, "threshold_limit": limit}
    clip = settings.get("clip_sample", False)
    clip_range = settings.get("clip_sample_range", 1.0)
    if clip and clip_range != 1:
        raise ValueError(
            f"{NAME}: clip_sample_range {clip_range} is not supported: images are in [-1, 1]."
        )
    return {"clip_x0": clip}


def find_scheduler(
    objective: Objective, sampling: Sampling, for_pipeline: bool = False
) -> dict[str, Any]:
    """The scheduler_config.json of the diffusers scheduler that steps as the sampling does.

    It does not hold the number of steps and guidance. If there is no such scheduler, or with
    `for_pipeline` none that DDPMPipeline can call, return the DDPMScheduler nearest to the
    sampling. Raise ValueError if diffusers cannot represent the objective.
    """
    training = _training_keys(objective)
    sampling = with_learned_variance(objective, sampling)
    for candidate in (sampling, ancestral_sampling(objective, sampling)):
        for name, spec in SCHEDULERS.items():
            if for_pipeline and not spec.in_pipeline:
                continue
            if objective.target == "x0" and not spec.supports_x0:
                continue
            common = _common_keys(training, candidate, spec)
            for choice in spec.choices:
                config = {"_class_name": name, **spec.defaults, **common, **choice}
                if not _fails(config) and _describes(config, objective, candidate):
                    return config
    raise ValueError(f"No scheduler of diffusers fits {objective} and {sampling}.")


def _fails(config: Mapping[str, Any]) -> bool:
    """Whether diffusers repeats timesteps and then fails (huggingface/diffusers issue 12771)."""
    is_multistep = config["_class_name"] == "DPMSolverMultistepScheduler"
    is_cosine = config["beta_schedule"] == "squaredcos_cap_v2"
    return is_multistep and is_cosine and config["use_karras_sigmas"]


def _describes(config: Mapping[str, Any], objective: Objective, sampling: Sampling) -> bool:
    """Whether a JSON parses to this objective and this sampling."""
    try:
        parsed = parse_scheduler(config)
    except ValueError:
        return False
    if parsed.objective.learns_variance != objective.learns_variance:
        return False
    if _training_keys(parsed.objective) != _training_keys(objective):
        return False
    return _exported_settings(parsed.sampling) == _exported_settings(sampling)


def ancestral_sampling(objective: Objective, sampling: Sampling) -> Sampling:
    """The ancestral sampling nearest to the sampling that a DDPMScheduler can represent."""
    options: Mapping[str, Any] = sampling.options
    if objective.learns_variance:
        options = {"variance": objective.variance}
    return Sampling(
        options={key: value for key, value in options.items() if key == "variance"},
        spacing=sampling.spacing if sampling.spacing in SPACINGS else "trailing",
        clip_x0=sampling.clip_x0,
        dynamic_threshold=sampling.dynamic_threshold,
        threshold_limit=sampling.threshold_limit,
    )


def _training_keys(objective: Objective) -> dict[str, Any]:
    """The keys that describe an objective. Raise ValueError if diffusers cannot represent it."""
    schedules = _inverse(SCHEDULES)
    targets = _inverse(TARGETS)
    for kind, value, names in (
        ("schedule", objective.schedule, schedules),
        ("target", objective.target, targets),
    ):
        if value not in names:
            listed = ", ".join(names)
            raise ValueError(f"The {kind} {value} does not exist in diffusers: only {listed} do.")
    if objective.variance == "learned":
        raise ValueError(
            "The variance learned does not exist in diffusers: train with learned_range."
        )
    return {
        "beta_schedule": schedules[objective.schedule],
        "beta_start": objective.beta_start,
        "beta_end": objective.beta_end,
        "num_train_timesteps": objective.timesteps,
        "prediction_type": targets[objective.target],
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
    }


def _common_keys(
    training: Mapping[str, Any], sampling: Sampling, spec: SchedulerSpec
) -> dict[str, Any]:
    """The keys of a scheduler that mean the same in all schedulers."""
    karras = sampling.spacing == "karras"
    thresholding = sampling.dynamic_threshold is not None
    # Schedulers without clip_sample can clip only by thresholding.
    clip_by_threshold = sampling.clip_x0 and "clip_sample" not in spec.defaults
    config = {
        **training,
        "timestep_spacing": "linspace" if karras else sampling.spacing,
        "use_karras_sigmas": karras,
        "steps_offset": sampling.leading_offset,
        "clip_sample": sampling.clip_x0 and not thresholding,
        "thresholding": thresholding or clip_by_threshold,
        "dynamic_thresholding_ratio": sampling.dynamic_threshold or 0.995,
        "sample_max_value": sampling.threshold_limit or (UNLIMITED if thresholding else 1.0),
    }
    return {key: value for key, value in config.items() if key in spec.defaults}


def _exported_settings(sampling: Sampling) -> tuple:
    """The settings of a sampling that a scheduler's JSON holds, with defaults filled in.

    It does not hold the number of steps, guidance, the grid and the option `compat`.
    """
    default_end = "sigma_min" if sampling.grid.endswith("to_0") else "clean"
    quantile = sampling.dynamic_threshold
    limit = sampling.threshold_limit
    # A threshold that may not exceed 1 is a clip to [-1, 1].
    if limit == 1:
        quantile = limit = None
    if limit is not None and limit >= UNLIMITED:
        limit = None
    clipped = quantile is None and (sampling.clip_x0 or sampling.threshold_limit == 1)
    parameters = inspect.signature(samplers.factory(sampling.sampler)).parameters
    defaults = {parameter.name: parameter.default for parameter in parameters.values()}
    options = defaults | dict(sampling.options)
    options.pop("compat", None)
    return (
        sampling.sampler,
        options,
        sampling.spacing,
        sampling.leading_offset,
        sampling.end or default_end,
        clipped,
        quantile,
        limit,
    )


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
