"""The DDPM objective as a recipe states it, and how samples are drawn."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import samplers
from ddpm_jax.editing import Edit
from ddpm_jax.errors import check
from ddpm_jax.grids import CLEAN, Row, Spacing, falling, make_grid, rows, spaced, times_of
from ddpm_jax.objective import Objective
from ddpm_jax.prediction import Denoiser, Network, make_denoiser
from ddpm_jax.schedule import q_sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, while training and by default afterwards."""

    sampler: str = "ddpm"
    """A module of ddpm_jax/samplers."""
    options: Mapping[str, float | str | None] = dataclasses.field(default_factory=dict)
    """The sampler's own options, by name."""
    steps: int | None = None
    """Steps of the walk; None for all T of the schedule."""
    spacing: Spacing = "trailing"
    """Which timesteps are walked when they are fewer than T; karras and log_snr place them by noise level."""
    timesteps: tuple[float, ...] | None = None
    """The timesteps themselves, falling, in place of steps and spacing."""
    clip_x0: bool = True
    """Limit the estimate of clean data to [-1, 1] at every step."""
    dynamic_threshold: float | None = None
    """Limit it to this quantile of its pixels instead, and scale it back into [-1, 1]; in (0, 1]."""
    guidance_scale: float = 1.0
    """How far to go from what the net says without a label to what it says with it; 1 for no guidance."""
    guidance_interval: tuple[float, float] | None = None
    """The lowest and the highest timestep that are guided; None for all."""
    guidance_rescale: float | None = None
    """Share in [0, 1] by which a guided output is brought back to the contrast of the unguided."""

    def __post_init__(self):
        samplers.make(self.sampler, **self.options)
        check(self.guidance_scale >= 0, f"guidance_scale must not be negative, not {self.guidance_scale}")
        _check_share("dynamic_threshold", self.dynamic_threshold, above=0.0)
        _check_share("guidance_rescale", self.guidance_rescale, above=-1.0)
        low, high = self.guidance_interval or (0, 0)
        check(low <= high, f"guidance_interval must rise, not {low} {high}")
        for name in ("steps", "spacing"):
            given = getattr(self, name) != getattr(Sampling, name)
            check(not (self.timesteps and given), f"give {name} or timesteps, not both")

    @property
    def by_noise(self) -> bool:
        """Whether timesteps are placed by noise level, any number of them."""
        return self.spacing in ("karras", "log_snr")

    @property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return self.guidance_scale != 1


def _check_share(name: str, value: float | None, above: float) -> None:
    check(value is None or above < value <= 1, f"{name} must be a share, at most 1, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Objective):
    """Learn to undo Gaussian noise (Ho et al. 2020), and draw samples by undoing it."""

    def steps(self, sampling: Sampling, edit: Edit | None = None) -> int:
        """How many steps a walk takes; raises ValueError for steps or timesteps out of range.

        Without an edit no device is touched: a recipe is checked before JAX is set up.
        """
        if edit is not None:
            return len(self.grid(sampling, edit).i)
        if sampling.timesteps is not None:
            return len(falling(self.timesteps, sampling.timesteps))
        steps = self.timesteps if sampling.steps is None else sampling.steps
        if sampling.by_noise:
            check(steps >= 1, f"steps must be at least 1, not {steps}")
            return steps
        return len(spaced(self.timesteps, steps))

    def grid(self, sampling: Sampling, edit: Edit | None = None) -> Row:
        """The grid of a walk; raises ValueError for steps or timesteps out of range."""
        if edit is not None:
            return edit.grid(self.grid(sampling), samplers.make(sampling.sampler, **sampling.options))
        schedule = self.noise_schedule()
        if sampling.timesteps is not None:
            t = np.asarray(sampling.timesteps)
            return make_grid(schedule, t.astype(int) if np.all(t == np.floor(t)) else t)
        steps = self.timesteps if sampling.steps is None else sampling.steps
        t = times_of(schedule, steps, sampling.spacing)
        if samplers.make(sampling.sampler, **sampling.options).even_stride:
            return rows(schedule, t, np.maximum(t - self.timesteps // steps, CLEAN))
        return make_grid(schedule, t)

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
        sampler, grid = samplers.make(sampling.sampler, **sampling.options), self.grid(sampling, edit)
        denoise, xT = self.denoiser(network, sampling), samplers.initial_noise(keys, shape)
        if edit is not None:
            xT, sampler = edit.start(keys, denoise, sampler, grid, xT), edit.sampler(sampler)
        yield xT
        yield from samplers.sample_in_chunks(keys, denoise, sampler, grid, xT, chunks)

    def denoiser(self, network: Network, sampling: Sampling) -> Denoiser:
        """The network's denoiser, limited as the sampling says."""
        sampler = samplers.make(sampling.sampler, **sampling.options)
        return make_denoiser(
            self.noise_schedule(),
            *self.predictor(network),
            1.0 if sampling.clip_x0 else None,
            dynamic_threshold=sampling.dynamic_threshold,
            keep_eps=sampler.even_stride,
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
