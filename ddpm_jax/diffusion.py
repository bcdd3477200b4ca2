"""The DDPM objective as a recipe states it, and how samples are drawn."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import samplers, step_caching
from ddpm_jax.compat import at_whole_timesteps, compat_grid, noise_scale
from ddpm_jax.editing import Edit
from ddpm_jax.errors import check
from ddpm_jax.grids import CLEAN, Row, Spacing, by_noise, falling, make_grid, spaced, times_of
from ddpm_jax.objective import Objective
from ddpm_jax.prediction import Denoiser, Network, make_denoiser
from ddpm_jax.schedule import q_sample

GIVE_WAY = {
    "sampler": ("options",),
    "steps": ("timesteps",),
    "spacing": ("timesteps", "offset"),
    "timesteps": ("steps", "spacing", "offset"),
}
"""Settings of a sampling that are of no use, or in the way, when another is set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, while training and by default afterwards."""

    sampler: str = "ddpm"
    """A module of ddpm_jax/samplers."""
    options: Mapping[str, bool | int | float | str | None] = dataclasses.field(default_factory=dict)
    """The sampler's own options, by name."""
    steps: int | None = None
    """Steps of the walk; None for all T of the schedule."""
    spacing: Spacing = "trailing"
    """Which timesteps are walked when they are fewer than T; karras and log_snr place them by noise level."""
    timesteps: tuple[float, ...] | None = None
    """The timesteps themselves, falling, in place of steps and spacing."""
    offset: int = 0
    """What leading timesteps are raised by, as those of some of diffusers' schedulers."""
    end: Literal["clean", "lowest"] | None = None
    """Where the last step leads: to clean data, or to the level of t = 0; None for the sampler's own way."""
    clip_x0: bool = True
    """Limit the estimate of clean data to [-1, 1] at every step."""
    dynamic_threshold: float | None = None
    """Limit it to this quantile of its pixels instead, and scale it back into [-1, 1]; in (0, 1]."""
    threshold_limit: float | None = None
    """The most that the threshold may be, at least 1; None for no limit."""
    guidance_scale: float = 1.0
    """How far to go from what the net says without a label to what it says with it; 1 for no guidance."""
    guidance_interval: tuple[float, float] | None = None
    """The lowest and the highest timestep that are guided; None for all."""
    guidance_rescale: float | None = None
    """Share in [0, 1] by which a guided output is brought back to the contrast of the unguided."""
    cache_interval: int | None = None
    """Run the whole U-Net every so many steps, and its shallow part alone between them; None for the whole always."""
    cache_depth: int = 0
    """How many blocks of the way down that part has; 0 is the fastest."""

    def __post_init__(self):
        with contextlib.suppress(FileNotFoundError):  # a file that an option names may be made later
            method = samplers.make(self.sampler, **self.options)
            if self.cache_interval is not None:
                step_caching.check_sampler(method)
        by_noise(self.spacing)
        check(self.guidance_scale >= 0, f"guidance_scale must not be negative, not {self.guidance_scale}")
        share, rescale = self.dynamic_threshold, self.guidance_rescale
        check(share is None or 0 < share <= 1, f"dynamic_threshold must be above 0 and at most 1, not {share}")
        check(
            self.threshold_limit is None or (share is not None and self.threshold_limit >= 1),
            f"threshold_limit must be at least 1, with a dynamic_threshold, not {self.threshold_limit}",
        )
        check(self.end in (None, "clean", "lowest"), f"end must be clean or lowest, not {self.end}")
        check(
            self.offset == 0 or (self.offset > 0 and self.spacing == "leading"),
            f"offset must not be negative, and is for spacing leading, not {self.offset} with {self.spacing}",
        )
        check(rescale is None or 0 <= rescale <= 1, f"guidance_rescale must be in [0, 1], not {rescale}")
        low, high = self.guidance_interval or (0, 0)
        check(low <= high, f"guidance_interval must rise, not {low} {high}")
        check(
            self.guided or (rescale is None and self.guidance_interval is None),
            "guidance_interval and guidance_rescale are for guidance: set guidance_scale too, or leave them out",
        )
        interval, depth = self.cache_interval, self.cache_depth
        check(interval is None or interval >= 1, f"cache_interval must be at least 1, not {interval}")
        check(depth == 0 or interval is not None, "cache_depth is for step caching: set cache_interval too")
        for name in ("steps", "spacing"):
            given = getattr(self, name) != getattr(Sampling, name)
            check(not (self.timesteps and given), f"give {name} or timesteps, not both")

    def changed(self, **settings: Any) -> "Sampling":
        """With other settings, in place also of those that go with what they replace, such as offset with spacing."""
        return dataclasses.replace(self.cleared_for(settings), **settings)

    def cleared_for(self, names: Iterable[str]) -> "Sampling":
        """Without the settings that give way when those of these names are set."""
        gone = {other for name in names for other in GIVE_WAY.get(name, ())}
        return dataclasses.replace(self, **{name: getattr(Sampling(), name) for name in gone})

    @functools.cached_property
    def method(self) -> samplers.Sampler:
        """The sampler with its options; raises FileNotFoundError where a file that they name is not there."""
        return samplers.make(self.sampler, **self.options)

    @property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return self.guidance_scale != 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Objective):
    """Learn to undo Gaussian noise (Ho et al. 2020), and draw samples by undoing it."""

    def steps(self, sampling: Sampling, edit: Edit | None = None) -> int:
        """How many steps a walk takes; raises ValueError for steps or timesteps out of range.

        Without an edit no device is touched: a recipe is checked before JAX is set up.
        """
        if edit is not None:
            return len(self.grid(sampling, edit).i)
        steps = self.timesteps if sampling.steps is None else sampling.steps
        if sampling.timesteps is not None:
            steps = len(falling(self.timesteps, sampling.timesteps))
        elif by_noise(sampling.spacing):
            check(steps >= 1, f"steps must be at least 1, not {steps}")
        else:
            spaced(self.timesteps, steps)
        self._check_said(sampling, steps)
        return steps

    def _check_said(self, sampling: Sampling, steps: int) -> None:
        """Raises ValueError for a variance that the network does not say, and guidance that is nowhere."""
        variance, interval = sampling.options.get("variance"), sampling.guidance_interval
        check(
            variance in (None, "fixed_small", "fixed_large", self.variance),
            f"the network was not trained to say variance {variance}: use fixed_small or fixed_large",
        )
        check(
            variance != "learned" or steps == self.timesteps,
            f"variance learned is that of one timestep: take all {self.timesteps} steps, not {steps}",
        )
        check(
            interval is None or (interval[0] < self.timesteps and interval[1] >= 0),
            f"guidance_interval {interval} holds none of the timesteps 0..{self.timesteps - 1}",
        )

    def resolved(self, sampling: Sampling) -> Sampling:
        """The sampling with the variance that the network has learned, where the sampler can take it."""
        takes = self.learns_variance and "variance" in samplers.options_of(sampling.sampler)
        learned = {"variance": self.variance} if takes else {}
        return dataclasses.replace(sampling, options=learned | dict(sampling.options))

    def grid(self, sampling: Sampling, edit: Edit | None = None) -> Row:
        """The grid of a walk; raises ValueError for steps or timesteps out of range."""
        if edit is not None:
            return edit.grid(self.grid(sampling), sampling.method)
        schedule, walk = self.noise_schedule(), sampling.method.compat_walk
        end = 0 if sampling.end == "lowest" else CLEAN
        if sampling.timesteps is not None:
            t = np.asarray(sampling.timesteps)
            return make_grid(schedule, t.astype(int) if np.all(t == np.floor(t)) else t, end)
        steps = self.timesteps if sampling.steps is None else sampling.steps
        if walk is not None:
            asked = None if sampling.end is None else end
            return compat_grid(walk, schedule, steps, sampling.spacing, sampling.offset, asked)
        return make_grid(schedule, times_of(schedule, steps, sampling.spacing) + sampling.offset, end)

    def walk(
        self,
        keys: Key[Array, " b"],
        network: Network,
        shape: tuple[int, int, int],
        sampling: Sampling,
        chunks: int,
        edit: Edit | None = None,
    ) -> Iterator[Float[Array, "b h w c"]]:
        """Yields xT, then xt after each of `chunks` equal parts of the walk; the last is x0 in [-1, 1].

        `edit` has a row for each key.
        """
        sampler, grid = sampling.method, self.grid(sampling, edit)
        denoise, xT = self.denoiser(network, sampling), samplers.initial_noise(keys, shape)
        if edit is None:
            xT = noise_scale(sampler.compat_walk, sampling.spacing, grid) * xT
        else:
            xT = edit.start(keys, denoise, sampler, grid, xT)
        if sampling.cache_interval is not None:
            sampler = step_caching.cached(sampler, sampling.cache_interval, denoise, xT)
        if edit is not None:
            sampler = edit.sampler(sampler)
        yield xT
        yield from samplers.sample_in_chunks(keys, denoise, sampler, grid, xT, chunks)

    def denoiser(self, network: Network, sampling: Sampling) -> Denoiser:
        """The network's denoiser, limited as the sampling says."""
        network, target = self.predictor(network)
        return make_denoiser(
            self.noise_schedule(),
            at_whole_timesteps(network) if (sampling.method.compat_walk or "").startswith("inner") else network,
            target,
            1.0 if sampling.clip_x0 else None,
            dynamic_threshold=sampling.dynamic_threshold,
            threshold_limit=sampling.threshold_limit,
            keep_eps=sampling.method.keep_eps,
        )

    def noisy(
        self, keys: Key[Array, " b"], images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h w c"], Int[Array, " b"]]:
        """Image i at the i-th of b noise levels from t = 0 to T-1, and those t."""
        t = jnp.round(jnp.linspace(0, self.timesteps - 1, len(images))).astype(jnp.int32)
        return q_sample(self.noise_schedule(), images, t, samplers.initial_noise(keys, images.shape[1:])), t

    def predict(self, network: Network, xt: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        """The network's estimate of clean data, in [-1, 1]."""
        return self.denoiser(network, Sampling())(xt, t).x0
