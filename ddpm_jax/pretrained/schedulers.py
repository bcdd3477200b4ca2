"""The schedulers of diffusers: their keys with the defaults, and which of our samplers walks as each does."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import check
from ddpm_jax.generation.scheduler_grids import GridKind
from ddpm_jax.pretrained.json_settings import lookup

VARIANCES = {name: name for name in ("fixed_small", "fixed_large", "learned_range")} | {
    "fixed_small_log": "fixed_small"
}
LEGACY = {"timestep_values", "tensor_format", "predict_epsilon"}
"""Keys that schedulers once had."""

# What a key that is missing stands for. Keys that several schedulers have:
TRAINED: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
CLIPPED: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLDED: dict[str, Any] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
SIGMAS: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
RESCALED: dict[str, Any] = {"rescale_betas_zero_snr": False}
SHIFTED: dict[str, Any] = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
}
SHIFTED |= {"time_shift_type": "exponential"}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
SOLVED: dict[str, Any] = {"solver_order": 2, "lower_order_final": True}
DPM: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
}
ENDED: dict[str, Any] = {"final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None}

OWN_VALUES: dict[str, dict[str, tuple]] = {
    "solver_type": {
        "UniPCMultistepScheduler": ("bh1", "bh2"),
        "DPMSolverMultistepScheduler": ("midpoint", "heun"),
        "DPMSolverSinglestepScheduler": ("midpoint", "heun"),
        "DEISMultistepScheduler": ("logrho",),
    },
    "algorithm_type": {
        "DPMSolverMultistepScheduler": (
            "dpmsolver",
            "dpmsolver++",
            "sde-dpmsolver",
            "sde-dpmsolver++",
        ),
        "DPMSolverSinglestepScheduler": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
        "DEISMultistepScheduler": ("deis",),
    },
    "variance_type": {
        "DDPMScheduler": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        ),
    },
}
"""Values of a key by scheduler; one reads another's JSON without a value that it does not have."""


class SchedulerSpec(NamedTuple):
    """A scheduler: its keys and their defaults, and our sampler and grid that equal it."""

    defaults: dict[str, Any]
    sampler: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    """The sampler and its options, by the settings."""
    supported: tuple[str, ...] = ()
    """Keys of its own that `sampler` heeds; others must be at their defaults."""
    choices: tuple[dict[str, Any], ...] = ({},)
    """Values of these and of the end, in all their combinations."""
    whole_karras: bool = True
    """Whether Karras sigmas span the whole schedule, whatever the timesteps."""
    in_pipeline: bool = False
    """Whether DDPMPipeline can call it, which scales neither the noise nor what the network sees."""
    steps_x0: bool = True
    """Whether it steps with networks that predict x0."""
    grid: GridKind = "plain"
    """Its way through the timesteps."""
    keep_eps: bool = False
    """Whether it keeps the network's eps where x0 was clipped."""


def _ddpm(said):
    return "ddpm", {"variance": lookup(VARIANCES, said["variance_type"], "variance_type")}


def _pndm(said):
    average = "v" if said["prediction_type"] == "v_prediction" else "eps"
    return "pndm", {"runge_kutta": not said["skip_prk_steps"], "average": average, "compat": True}


def _unipc(said):
    return "unipc", {"order": said["solver_order"], "B": said["solver_type"], "compat": True}


def _dpm(said):
    algorithm, order = said["algorithm_type"], said["solver_order"]
    kind = (algorithm, order)
    names = {
        ("dpmsolver++", 2): "dpmpp_2m",
        ("dpmsolver++", 3): "dpmpp_3m",
        ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    }
    if kind == ("dpmsolver++", 1):
        return "unipc", {"order": 1, "corrector": False, "compat": True}
    check(
        kind in names, f"algorithm_type {algorithm[:80]} of solver_order {order} is not supported"
    )
    return names[kind], {"compat": True}


def _deis(said):
    return "deis", {"order": said["solver_order"], "compat": True}


def _named(name, **options):
    return lambda said: (name, options)


def _values(key, *values):
    return tuple({key: value} for value in values)


def _each(*choices):
    """All combinations of choices, the first of each first."""
    found = ({},)
    for choice in choices:
        found = tuple({**one, **other} for one in found for other in choice)
    return found


TO_ONE = _values("set_alpha_to_one", True, False)
SIGMA_ENDS = _values("final_sigmas_type", "zero", "sigma_min")

SCHEDULERS = {
    "DDPMScheduler": SchedulerSpec(
        TRAINED | LEADING | CLIPPED | THRESHOLDED | RESCALED | {"variance_type": "fixed_small"},
        _ddpm,
        choices=_values("variance_type", "fixed_small", "fixed_large", "learned_range"),
        in_pipeline=True,
    ),
    "DDIMScheduler": SchedulerSpec(
        TRAINED | LEADING | CLIPPED | THRESHOLDED | RESCALED | {"set_alpha_to_one": True},
        _named("ddim"),
        choices=TO_ONE,
        in_pipeline=True,
        grid="strides",
        keep_eps=True,
    ),
    "PNDMScheduler": SchedulerSpec(
        TRAINED | LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
        _pndm,
        supported=("skip_prk_steps",),
        choices=_each(_values("skip_prk_steps", False, True), TO_ONE),
        steps_x0=False,
        grid="strides_to_0",
    ),
    "UniPCMultistepScheduler": SchedulerSpec(
        TRAINED | LINSPACE | THRESHOLDED | SIGMAS | RESCALED | SHIFTED | SOLVED | ENDED
        | {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None, "shift_terminal": None},
        _unipc,
        supported=("solver_order", "solver_type"),
        choices=_each(_values("solver_order", 2, 3, 1), _values("solver_type", "bh2", "bh1"), SIGMA_ENDS),
        grid="inner",
    ),
    "DPMSolverMultistepScheduler": SchedulerSpec(
        TRAINED | LINSPACE | THRESHOLDED | SIGMAS | RESCALED | SHIFTED | SOLVED | DPM
        | {"euler_at_final": False, "use_lu_lambdas": False},
        _dpm,
        supported=("solver_order", "algorithm_type"),
        choices=_each(_values("solver_order", 2, 3, 1), SIGMA_ENDS)
        + _each(_values("algorithm_type", "sde-dpmsolver++"), SIGMA_ENDS),
        in_pipeline=True,
        grid="inner",
    ),
    "DPMSolverSinglestepScheduler": SchedulerSpec(
        {key: value for key, value in TRAINED.items() if key != "steps_offset"}
        | THRESHOLDED | SIGMAS | SHIFTED | SOLVED | DPM | {"lower_order_final": False},
        _named("dpmpp_2s", compat=True),
        supported=("lower_order_final",),
        choices=SIGMA_ENDS,
        in_pipeline=True,
        grid="inner",
    ),
    "EulerDiscreteScheduler": SchedulerSpec(
        TRAINED | LINSPACE | SIGMAS | RESCALED | ENDED | {"interpolation_type": "linear", "timestep_type": "discrete"},
        _named("euler"),
        choices=SIGMA_ENDS,
        whole_karras=False,
        grid="float",
    ),
    "EulerAncestralDiscreteScheduler": SchedulerSpec(
        TRAINED | LINSPACE | RESCALED, _named("euler_ancestral"), steps_x0=False, grid="float"
    ),
    "HeunDiscreteScheduler": SchedulerSpec(
        TRAINED | LINSPACE | SIGMAS | CLIPPED | {"clip_sample": False, "beta_start": 0.00085, "beta_end": 0.012},
        _named("heun", compat=True),
        whole_karras=False,
        grid="float",
    ),
    "DEISMultistepScheduler": SchedulerSpec(
        TRAINED | LINSPACE | THRESHOLDED | SIGMAS | SHIFTED | SOLVED
        | {"algorithm_type": "deis", "solver_type": "logrho"},
        _deis,
        supported=("solver_order",),
        choices=_values("solver_order", 3, 2, 1),
        grid="inner_to_0",
    ),
    "LMSDiscreteScheduler": SchedulerSpec(
        TRAINED | LINSPACE | SIGMAS, _named("lms", compat=True), whole_karras=False, grid="float"
    ),
}  # fmt: skip
