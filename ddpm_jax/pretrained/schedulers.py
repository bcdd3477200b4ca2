"""The schedulers of diffusers: their keys and defaults, and the matching samplers of ddpm_jax."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax.generation.scheduler_grids import GridKind
from ddpm_jax.pretrained.json_settings import lookup

VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
    "fixed_small_log": "fixed_small",
}
LEGACY_KEYS = {"timestep_values", "tensor_format", "predict_epsilon"}
"""Keys of older versions of diffusers."""

# Defaults of keys that several schedulers have.
TRAINING: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
CLIPPING: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLDING: dict[str, Any] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
SIGMA_SPACING: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": False}
FLOW_SHIFT: dict[str, Any] = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
SOLVER: dict[str, Any] = {"solver_order": 2, "lower_order_final": True}
DPM_SOLVER: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
}
SIGMA_RANGE: dict[str, Any] = {"final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None}
MULTISTEP = TRAINING | LINSPACE | THRESHOLDING | SIGMA_SPACING

VALUES_BY_SCHEDULER: dict[str, dict[str, tuple]] = {
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
        "DPMSolverMultistepScheduler": ("learned", "learned_range"),
        "DPMSolverSinglestepScheduler": ("learned", "learned_range"),
    },
}
"""The values of a key that each scheduler accepts.

A scheduler that reads the JSON of another one replaces other values by its own default.
"""


class SchedulerSpec(NamedTuple):
    """A scheduler of diffusers, and the sampler and grid that reproduce it."""

    defaults: dict[str, Any]
    """All its keys, with their defaults."""
    sampler: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    """Function from settings to the name of a sampler and its options."""
    supported: tuple[str, ...] = ()
    """Keys, besides `scheduler_config.SUPPORTED`, that may differ from their defaults."""
    choices: tuple[dict[str, Any], ...] = ({},)
    """Settings to try, in this order, when a sampling is exported as this scheduler."""
    full_karras_range: bool = True
    """Whether Karras sigmas span the whole schedule, whatever the timestep spacing."""
    in_pipeline: bool = False
    """Whether it works in DDPMPipeline, which scales neither the first noise nor inputs."""
    supports_x0: bool = True
    """Whether it works with networks that predict x0."""
    grid: GridKind = "plain"
    """Its grid of timesteps (`scheduler_grids.scheduler_grid`)."""
    keep_eps: bool = False
    """Whether it keeps the network's eps where x0 was clipped."""


def _ddpm(settings):
    return "ddpm", {"variance": lookup(VARIANCES, settings["variance_type"], "variance_type")}


def _pndm(settings):
    average = "v" if settings["prediction_type"] == "v_prediction" else "eps"
    runge_kutta = not settings["skip_prk_steps"]
    return "pndm", {"runge_kutta": runge_kutta, "average": average, "compat": True}


def _unipc(settings):
    order = settings["solver_order"]
    return "unipc", {"order": order, "B": settings["solver_type"], "compat": True}


def _dpm_solver(settings):
    algorithm = settings["algorithm_type"]
    order = settings["solver_order"]
    if (algorithm, order) == ("dpmsolver++", 1):
        return "unipc", {"order": 1, "corrector": False, "compat": True}
    names = {
        ("dpmsolver++", 2): "dpmpp_2m",
        ("dpmsolver++", 3): "dpmpp_3m",
        ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    }
    if (algorithm, order) not in names:
        raise ValueError(
            f"algorithm_type {algorithm[:80]} with solver_order {order} is not supported: "
            "use dpmsolver++ with 1 to 3, or sde-dpmsolver++ with 2."
        )
    return names[algorithm, order], {"compat": True}


def _deis(settings):
    return "deis", {"order": settings["solver_order"], "compat": True}


def _always(name, **options):
    """A sampler and options that do not depend on the settings."""
    return lambda settings: (name, options)


def _alternatives(key, *values):
    return tuple({key: value} for value in values)


def _combinations(*groups):
    """All combinations of one choice from each group; the last group varies fastest."""
    result = ({},)
    for group in groups:
        result = tuple({**combination, **choice} for combination in result for choice in group)
    return result


VARIANCE_CHOICES = _alternatives("variance_type", "fixed_small", "fixed_large", "learned_range")
SKIP_PRK_CHOICES = _alternatives("skip_prk_steps", False, True)
ALPHA_CHOICES = _alternatives("set_alpha_to_one", True, False)
SIGMA_CHOICES = _alternatives("final_sigmas_type", "zero", "sigma_min")
ORDER_CHOICES = _alternatives("solver_order", 2, 3, 1)
UNIPC_CHOICES = _alternatives("solver_type", "bh2", "bh1")
SDE_CHOICES = _alternatives("algorithm_type", "sde-dpmsolver++")

SCHEDULERS = {
    "DDPMScheduler": SchedulerSpec(
        defaults={
            **(TRAINING | LEADING | CLIPPING | THRESHOLDING | ZERO_SNR),
            "variance_type": "fixed_small",
        },
        sampler=_ddpm,
        choices=VARIANCE_CHOICES,
        in_pipeline=True,
    ),
    "DDIMScheduler": SchedulerSpec(
        defaults={
            **(TRAINING | LEADING | CLIPPING | THRESHOLDING | ZERO_SNR),
            "set_alpha_to_one": True,
        },
        sampler=_always("ddim"),
        choices=ALPHA_CHOICES,
        in_pipeline=True,
        grid="strides",
        keep_eps=True,
    ),
    "PNDMScheduler": SchedulerSpec(
        defaults={**TRAINING, **LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
        sampler=_pndm,
        supported=("skip_prk_steps",),
        choices=_combinations(SKIP_PRK_CHOICES, ALPHA_CHOICES),
        supports_x0=False,
        grid="strides_to_0",
    ),
    "UniPCMultistepScheduler": SchedulerSpec(
        defaults={
            **(MULTISTEP | ZERO_SNR | FLOW_SHIFT | SOLVER | SIGMA_RANGE),
            "solver_type": "bh2",
            "predict_x0": True,
            "disable_corrector": [],
            "solver_p": None,
            "shift_terminal": None,
        },
        sampler=_unipc,
        supported=("solver_order", "solver_type"),
        choices=_combinations(ORDER_CHOICES, UNIPC_CHOICES, SIGMA_CHOICES),
        grid="inner",
    ),
    "DPMSolverMultistepScheduler": SchedulerSpec(
        defaults={
            **(MULTISTEP | ZERO_SNR | FLOW_SHIFT | SOLVER | DPM_SOLVER),
            "euler_at_final": False,
            "use_lu_lambdas": False,
        },
        sampler=_dpm_solver,
        supported=("solver_order", "algorithm_type"),
        choices=(
            *_combinations(ORDER_CHOICES, SIGMA_CHOICES),
            *_combinations(SDE_CHOICES, SIGMA_CHOICES),
        ),
        in_pipeline=True,
        grid="inner",
    ),
    "DPMSolverSinglestepScheduler": SchedulerSpec(
        # It has neither steps_offset nor timestep_spacing.
        defaults={
            **{key: value for key, value in TRAINING.items() if key != "steps_offset"},
            **(THRESHOLDING | SIGMA_SPACING | FLOW_SHIFT | SOLVER | DPM_SOLVER),
            "lower_order_final": False,
        },
        sampler=_always("dpmpp_2s", compat=True),
        supported=("lower_order_final",),
        choices=SIGMA_CHOICES,
        in_pipeline=True,
        grid="inner",
    ),
    "EulerDiscreteScheduler": SchedulerSpec(
        defaults={
            **(TRAINING | LINSPACE | SIGMA_SPACING | ZERO_SNR | SIGMA_RANGE),
            "interpolation_type": "linear",
            "timestep_type": "discrete",
        },
        sampler=_always("euler"),
        choices=SIGMA_CHOICES,
        full_karras_range=False,
        grid="float",
    ),
    "EulerAncestralDiscreteScheduler": SchedulerSpec(
        defaults=TRAINING | LINSPACE | ZERO_SNR,
        sampler=_always("euler_ancestral"),
        supports_x0=False,
        grid="float",
    ),
    "HeunDiscreteScheduler": SchedulerSpec(
        defaults={
            **(TRAINING | LINSPACE | SIGMA_SPACING | CLIPPING),
            "clip_sample": False,
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        sampler=_always("heun", compat=True),
        full_karras_range=False,
        grid="float",
    ),
    "DEISMultistepScheduler": SchedulerSpec(
        defaults={
            **(MULTISTEP | FLOW_SHIFT | SOLVER),
            "algorithm_type": "deis",
            "solver_type": "logrho",
        },
        sampler=_deis,
        supported=("solver_order",),
        choices=_alternatives("solver_order", 3, 2, 1),
        grid="inner_to_0",
    ),
    "LMSDiscreteScheduler": SchedulerSpec(
        defaults=TRAINING | LINSPACE | SIGMA_SPACING,
        sampler=_always("lms", compat=True),
        full_karras_range=False,
        grid="float",
    ),
}
