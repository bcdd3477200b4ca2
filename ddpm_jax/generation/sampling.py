"""The settings of sampling, and their checks against the objective."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import Spacing, check_decreasing, is_noise_spacing, spaced
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.diffusion.prediction import check_threshold
from ddpm_jax.errors import check, check_ascending, check_settings, plain
from ddpm_jax.generation.scheduler_grids import GridKind, check_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, while training and by default afterwards."""

    sampler: str = "ddpm"
    """Name of a module of ddpm_jax/samplers."""
    options: Mapping[str, bool | int | float | str | None] = dataclasses.field(default_factory=dict)
    """The sampler's own options, by name."""
    steps: int | None = None
    """Number of steps; None for all T of the schedule. Ignored if timesteps are given."""
    spacing: Spacing = "trailing"
    """How timesteps are chosen; karras and log_snr space them by noise level. Ignored if timesteps
    are given."""
    timesteps: tuple[float, ...] | None = None
    """Explicit timesteps, decreasing. They override steps, spacing, offset and grid."""
    offset: int = 0
    """Added to every timestep with spacing leading; otherwise ignored."""
    end: Literal["clean", "sigma_min"] | None = None
    """End of the last step: clean data, or the noise level of t = 0; None for the grid's own."""
    grid: GridKind = "plain"
    """plain, or the timesteps as one of diffusers' schedulers rounds or shifts them; set when a
    scheduler's JSON is read (`generation/scheduler_grids.py`)."""
    keep_eps: bool = False
    """Keep the network's eps where x0 was clipped, as diffusers' DDIM does."""
    clip_x0: bool = True
    """Clip the estimate of clean data to [-1, 1] at every step."""
    dynamic_threshold: float | None = None
    """Clip x0 to this quantile of |x0| and divide by it; in (0, 1]. Overrides clip_x0."""
    threshold_limit: float | None = None
    """Maximum of the dynamic threshold, at least 1; None for no maximum."""
    guidance_scale: float = 1.0
    """Classifier-free guidance w: unconditional + w (conditional - unconditional); 1 for none."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest timestep with guidance; None for all."""
    guidance_rescale: float | None = None
    """Rescale guided outputs to the conditional standard deviation, from 0 (not) to 1 (fully)."""
    condition_noise: float = 0.0
    """Noise added to the image that a network is conditioned on, at most model.condition_noise."""

    def __post_init__(self):
        check_settings(self)
        named = isinstance(self.options, Mapping)
        check(named, f"options must map names to values, not {self.options!r}.")
        options = {name: plain(value) for name, value in self.options.items()}
        object.__setattr__(self, "options", options)
        samplers.check_options(self.sampler, self.options)
        check(
            self.guidance_scale >= 0,
            f"guidance_scale must be at least 0, not {self.guidance_scale}.",
        )
        check_threshold(self.dynamic_threshold, self.threshold_limit)
        check(self.offset >= 0, f"offset must be at least 0, not {self.offset}.")
        rescale = self.guidance_rescale
        check(
            rescale is None or 0 <= rescale <= 1,
            f"guidance_rescale must be in [0, 1], not {rescale}.",
        )
        check(
            0 <= self.condition_noise < 1,
            f"condition_noise must be in [0, 1), not {self.condition_noise}.",
        )
        check_ascending(guidance_interval=self.guidance_interval)
        check(
            self.guided or (rescale is None and self.guidance_interval is None),
            "guidance_interval and guidance_rescale need guidance: set guidance_scale too, or "
            "leave them out; if they are of a recipe or a folder, set them to None.",
        )

    def override(self, **settings: Any) -> "Sampling":
        """Replace settings. Another sampler starts from its own options, grid and end.

        Steps or a spacing replace explicit timesteps. Raise ValueError for an unknown setting.
        """
        fields = [field.name for field in dataclasses.fields(Sampling)]
        for name in settings:
            choice = f"choose one of {', '.join(fields)}"
            check(name in fields, f"Sampling has no setting {name!r}: {choice}.")
        if {"steps", "spacing"} & set(settings):
            settings = {"timesteps": None} | settings
        if settings.get("sampler", self.sampler) != self.sampler:
            own = {"options": {}, "grid": "plain", "keep_eps": False, "end": None}
            settings = own | settings
        return dataclasses.replace(self, **settings)

    @property
    def leading_offset(self) -> int:
        """The offset in effect: 0 unless spacing is leading."""
        return self.offset if self.spacing == "leading" else 0

    @property
    def grid_kind(self) -> GridKind:
        """The grid in effect: plain if timesteps are given."""
        return "plain" if self.timesteps is not None else self.grid

    @property
    def guided(self) -> bool:
        """Whether guidance is on."""
        return self.guidance_scale != 1


def step_count(objective: Objective, sampling: Sampling) -> int:
    """The number of sampling steps. Raise ValueError for steps or timesteps out of range.

    No device is used, because a recipe is checked before JAX is set up.
    """
    steps = objective.timesteps if sampling.steps is None else sampling.steps
    if sampling.timesteps is not None:
        return len(check_decreasing(objective.timesteps, sampling.timesteps))
    if is_noise_spacing(sampling.spacing):
        check(steps >= 1, f"The number of sampling steps must be at least 1, not {steps}.")
    else:
        # Raises ValueError for steps out of range.
        spaced(objective.timesteps, steps)
    return steps


def check_sampling(objective: Objective, sampling: Sampling) -> None:
    """Raise ValueError unless steps, grid, variance and guidance interval fit the objective.

    The grid is checked only if `steps` is given: a diffusers scheduler's config does not hold the
    number of steps, and its grid may need fewer than T.
    """
    steps = step_count(objective, sampling)
    if sampling.timesteps is None and sampling.steps is not None:
        offset = sampling.leading_offset
        check_grid(sampling.grid, objective.timesteps, steps, sampling.spacing, offset)
    check_variance(objective, sampling.options.get("variance"))
    variance = with_learned_variance(objective, sampling).options.get("variance")
    by_noise = sampling.timesteps is None and is_noise_spacing(sampling.spacing)
    valid = "Variance learned is valid only for steps from t to t - 1"
    check(
        variance != "learned" or not by_noise,
        f"{valid}: use spacing trailing, not {sampling.spacing}.",
    )
    check(
        variance != "learned" or steps == objective.timesteps,
        f"{valid}: take all {objective.timesteps} steps, not {steps}.",
    )
    interval = sampling.guidance_interval
    check(
        interval is None or (interval[0] < objective.timesteps and interval[1] >= 0),
        f"guidance_interval {interval} contains none of the timesteps "
        f"0..{objective.timesteps - 1}: move it, or leave it out.",
    )


def check_variance(objective: Objective, variance: Any) -> None:
    """Raise ValueError for a variance that is neither fixed nor the one that was trained."""
    check(
        variance in (None, "fixed_small", "fixed_large", objective.variance),
        f"The network was not trained for variance {variance}: use fixed_small or fixed_large.",
    )


def with_learned_variance(objective: Objective, sampling: Sampling) -> Sampling:
    """Set the sampler's option `variance` to a trained variance, if the sampler has this option.

    A variance that is already set stays.
    """
    if not objective.learns_variance or "variance" not in samplers.options_of(sampling.sampler):
        return sampling
    options = {"variance": objective.variance} | dict(sampling.options)
    return dataclasses.replace(sampling, options=options)


def build_sampler(objective: Objective, sampling: Sampling) -> samplers.Sampler:
    """Make the sampler with its options. Raise FileNotFoundError if an option's file is missing."""
    return samplers.make(sampling.sampler, **with_learned_variance(objective, sampling).options)
