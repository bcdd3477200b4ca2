"""The settings of sampling, and the checks that need the objective too."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ddpm_jax import samplers
from ddpm_jax.diffusion.grid import Spacing, check_decreasing, is_noise_spacing, spaced
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.generation.scheduler_grids import GRID_KINDS, GridKind, check_grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, while training and by default afterwards."""

    sampler: str = "ddpm"
    """A module of ddpm_jax/samplers."""
    options: Mapping[str, bool | int | float | str | None] = dataclasses.field(default_factory=dict)
    """The sampler's own options, by name."""
    steps: int | None = None
    """Steps of the walk; None for all T of the schedule. Ignored where timesteps are given."""
    spacing: Spacing = "trailing"
    """Which timesteps are walked when they are fewer than T; karras and log_snr place them by noise level.
    Ignored where timesteps are given."""
    timesteps: tuple[float, ...] | None = None
    """The timesteps themselves, falling; they win over steps, spacing, offset and grid."""
    offset: int = 0
    """Added to every timestep where spacing is leading; otherwise ignored."""
    end: Literal["clean", "sigma_min"] | None = None
    """Where the last step leads: to clean data, or to the level of t = 0; None for the grid's own way."""
    grid: GridKind = "plain"
    """plain, or the timesteps of some of diffusers' schedulers (`scheduler_grids.scheduler_grid`)."""
    keep_eps: bool = False
    """Keep the network's eps where x0 was clipped, as diffusers' DDIM does."""
    clip_x0: bool = True
    """Limit the estimate of clean data to [-1, 1] at every step."""
    dynamic_threshold: float | None = None
    """Limit it to this quantile of its pixels instead, and scale it back into [-1, 1]; in (0, 1]."""
    threshold_limit: float | None = None
    """The most that the threshold may be, at least 1; None for no limit."""
    guidance_scale: float = 1.0
    """How far to go from the output without a condition to the output with it; 1 for no guidance."""
    guidance_interval: tuple[float, float] | None = None
    """The lowest and the highest timestep that are guided; None for all."""
    guidance_rescale: float | None = None
    """Share in [0, 1] by which a guided output is brought back to the contrast of the conditional one."""

    def __post_init__(self):
        samplers.check_options(self.sampler, self.options)
        is_noise_spacing(self.spacing)
        check(
            self.end in (None, "clean", "sigma_min"), f"end must be clean or lowest, not {self.end}"
        )
        check(
            self.grid in GRID_KINDS,
            f"unknown grid {self.grid!r}; there are: {', '.join(GRID_KINDS)}",
        )
        check(
            self.guidance_scale >= 0,
            f"guidance_scale must not be negative, not {self.guidance_scale}",
        )
        share, rescale = self.dynamic_threshold, self.guidance_rescale
        check(
            share is None or 0 < share <= 1,
            f"dynamic_threshold must be above 0 and at most 1, not {share}",
        )
        check(
            self.threshold_limit is None or (share is not None and self.threshold_limit >= 1),
            f"threshold_limit must be at least 1, with a dynamic_threshold, not {self.threshold_limit}",
        )
        check(self.offset >= 0, f"offset must not be negative, not {self.offset}")
        check(
            rescale is None or 0 <= rescale <= 1,
            f"guidance_rescale must be in [0, 1], not {rescale}",
        )
        low, high = self.guidance_interval or (0, 0)
        check(low <= high, f"guidance_interval must rise, not {low} {high}")
        check(
            self.guided or (rescale is None and self.guidance_interval is None),
            "guidance_interval and guidance_rescale are for guidance: set guidance_scale too, or leave them out",
        )

    def override(self, **settings: Any) -> "Sampling":
        """Replace settings; another sampler starts from its own options and the plain grid."""
        if settings.get("sampler", self.sampler) != self.sampler:
            settings = {"options": {}, "grid": "plain", "keep_eps": False} | settings
        return dataclasses.replace(self, **settings)

    @property
    def leading_offset(self) -> int:
        """The offset where it counts: 0 unless spacing is leading."""
        return self.offset if self.spacing == "leading" else 0

    @property
    def grid_kind(self) -> GridKind:
        """The grid where it counts: plain where timesteps are given."""
        return "plain" if self.timesteps is not None else self.grid

    @property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return self.guidance_scale != 1


def step_count(objective: Objective, sampling: Sampling) -> int:
    """The number of steps of a walk; raises ValueError for steps or timesteps out of range.

    No device is touched: a recipe is checked before JAX is set up.
    """
    steps = objective.timesteps if sampling.steps is None else sampling.steps
    if sampling.timesteps is not None:
        return len(check_decreasing(objective.timesteps, sampling.timesteps))
    if is_noise_spacing(sampling.spacing):
        check(steps >= 1, f"steps must be at least 1, not {steps}")
    else:
        spaced(objective.timesteps, steps)
    return steps


def check_sampling(objective: Objective, sampling: Sampling) -> None:
    """Raise ValueError for steps out of range, a grid that cannot be walked, a variance that is not learned, or an
    empty guidance interval.

    A grid is checked once its steps are chosen: a scheduler of diffusers may need fewer than T, and does not say how
    many.
    """
    steps = step_count(objective, sampling)
    if sampling.timesteps is None and sampling.steps is not None:
        check_grid(
            sampling.grid, objective.timesteps, steps, sampling.spacing, sampling.leading_offset
        )
    variance, interval = sampling.options.get("variance"), sampling.guidance_interval
    check(
        variance in (None, "fixed_small", "fixed_large", objective.variance),
        f"the network was not trained to say variance {variance}: use fixed_small or fixed_large",
    )
    check(
        with_learned_variance(objective, sampling).options.get("variance") != "learned"
        or steps == objective.timesteps,
        f"variance learned is that of one timestep: take all {objective.timesteps} steps, not {steps}",
    )
    check(
        interval is None or (interval[0] < objective.timesteps and interval[1] >= 0),
        f"guidance_interval {interval} holds none of the timesteps 0..{objective.timesteps - 1}",
    )


def with_learned_variance(objective: Objective, sampling: Sampling) -> Sampling:
    """The sampling with the variance that the network has learned, where the sampler can take it."""
    if not objective.learns_variance or "variance" not in samplers.options_of(sampling.sampler):
        return sampling
    return dataclasses.replace(
        sampling, options={"variance": objective.variance} | dict(sampling.options)
    )


def build_sampler(objective: Objective, sampling: Sampling) -> samplers.Sampler:
    """The sampler with its options; raises FileNotFoundError where a file that they name is missing."""
    return samplers.make(sampling.sampler, **with_learned_variance(objective, sampling).options)
