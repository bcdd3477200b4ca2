"""The training objective: noise schedule, prediction target, distribution of timesteps, loss."""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ddpm_jax.diffusion import preconditioning
from ddpm_jax.diffusion.losses import (
    Weighting,
    hybrid_loss,
    lognormal_timesteps,
    loss_weight,
    simple_loss,
    uniform_timesteps,
    vlb_loss,
)
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.diffusion.prediction import Network, Target
from ddpm_jax.diffusion.schedule import BETAS, NoiseSchedule, from_betas, zero_terminal_snr
from ddpm_jax.errors import check, check_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Learn to reverse Gaussian noising (Ho et al. 2020): schedule, target, timesteps, loss."""

    schedule: Literal["linear", "scaled_linear", "squaredcos", "sigmoid", "flow", "edm"] = "linear"
    """Noise schedule."""
    timesteps: int = 1000
    """Number of timesteps T."""
    beta_start: float = 1e-4
    """First beta. The schedules squaredcos, flow and edm ignore it. Latent diffusion's
    scaled_linear is from 0.00085 to 0.012."""
    beta_end: float = 0.02
    """Last beta. The schedules squaredcos, flow and edm ignore it."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that x_T is pure noise; needs a target other than eps."""
    target: Literal["eps", "x0", "v", "flow", "edm"] = "eps"
    """The output of the network; edm: x0, with the preconditioning of Karras et al. 2022."""
    sigma_data: float = 0.5
    """Standard deviation of the images in [-1, 1], for target edm."""
    timestep_sampling: Literal["uniform", "lognormal", "importance"] = "uniform"
    """Distribution of t; lognormal: of sigma, as in EDM; importance: by the RMS loss at each t."""
    log_sigma_mean: float = -1.2
    """Mean of ln(sigma) for lognormal timesteps."""
    log_sigma_std: float = 1.2
    """Standard deviation of ln(sigma) for lognormal timesteps."""
    weighting: Weighting = "simple"
    """Weight of the loss at each noise level; simple: 1 for the error of the network's output. The
    others are 0 at zero SNR, so pure noise, where sampling starts, is not trained."""
    gamma: float | None = None
    """The weighting's gamma; the default is 5 (min_snr), 4 (soft_min_snr) or 1 (p2)."""
    loss_kind: Literal["simple", "hybrid", "vlb"] = "simple"
    """L_simple, L_hybrid = L_simple + 0.001 L_vlb, or the variational bound L_vlb."""
    variance: Variance = "fixed_small"
    """Reverse step's variance in the bound; a learned one needs model.learned_variance."""

    def __post_init__(self):
        check_settings(self, "objective.")
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        check(
            self.timesteps >= 1,
            f"The objective's timesteps must be at least 1, not {self.timesteps}.",
        )
        check(
            0 < self.beta_start <= self.beta_end < 1,
            "The objective's betas must satisfy 0 < beta_start <= beta_end < 1, "
            f"not {self.beta_start} and {self.beta_end}.",
        )
        for name in ("log_sigma_std", "sigma_data"):
            value = getattr(self, name)
            check(value > 0, f"The objective's {name} must be positive, not {value}.")
        gamma = self.gamma
        check(gamma is None or gamma > 0, f"The objective's gamma must be positive, not {gamma}.")

    def _check_combinations(self) -> None:
        check(
            self.timesteps >= 2 or not (self.zero_terminal_snr or self.schedule == "flow"),
            "The only timestep would be pure noise: zero_terminal_snr and the schedule flow need "
            "timesteps of at least 2.",
        )
        check(
            self.gamma is None or self.weighting != "simple",
            "The weighting simple has no gamma: set weighting to min_snr, soft_min_snr or p2.",
        )
        check(
            self.target != "eps" or not (self.zero_terminal_snr or self.schedule == "flow"),
            "With zero terminal SNR, as on the schedule flow, x0 does not follow from eps at T-1: "
            "use target x0 or v.",
        )
        check(
            not self.learns_variance or self.loss_kind != "simple",
            "L_simple does not train the variance: "
            f"with variance {self.variance} set loss_kind to hybrid or vlb.",
        )
        check(
            self.learns_variance or self.loss_kind != "hybrid",
            "Without a learned variance L_hybrid trains as L_simple does: "
            "set variance to learned_range or learned.",
        )
        check(
            self.loss_kind == "simple" or self.timestep_sampling != "lognormal",
            "The variational bound needs whole timesteps: "
            f"with loss_kind {self.loss_kind} set timestep_sampling to uniform or importance.",
        )
        check(
            self.loss_kind != "vlb" or self.weighting == "simple",
            "The variational bound has its own weights: "
            "with loss_kind vlb leave weighting at simple.",
        )

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance of the reverse step."""
        return self.variance.startswith("learned")

    def betas(self) -> np.ndarray:
        """The schedule's betas (T,), float64."""
        options: dict[str, float] = {}
        if self.schedule in ("linear", "scaled_linear", "sigmoid"):
            options = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        betas = BETAS[self.schedule](self.timesteps, **options)
        return zero_terminal_snr(betas) if self.zero_terminal_snr else betas

    @functools.cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """The schedule's tables, computed once."""
        # If the first access is within a trace, the cached tables must still be concrete arrays.
        with jax.ensure_compile_time_eval():
            return from_betas(self.betas())

    def loss(
        self,
        keys: Key[Array, " b"],
        network: Network,
        images: Float[Array, "b h w c"],
        t: Num[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """The loss of each example, for images in [-1, 1].

        Without `t`, timesteps are those of `draw_timesteps`.
        """
        schedule = self.noise_schedule
        network, target = self.network_and_target(network)
        if t is None:
            t = self.draw_timesteps(keys)
        arguments = (keys, schedule, network, images, target)
        if self.loss_kind == "vlb":
            return vlb_loss(*arguments, self.variance, t=t)
        weight = self._weight(schedule.snr(t), target)
        if self.loss_kind == "hybrid":
            return hybrid_loss(*arguments, self.variance, t=t, weight=weight)
        return simple_loss(*arguments, t=t, weight=weight)

    def draw_timesteps(self, keys: Key[Array, " b"]) -> Num[Array, " b"]:
        """The timesteps that `loss` draws from its keys: lognormal if so set, otherwise uniform.

        For importance sampling the training step draws others.
        """
        schedule = self.noise_schedule
        if self.timestep_sampling == "lognormal":
            return lognormal_timesteps(keys, schedule, self.log_sigma_mean, self.log_sigma_std)
        return uniform_timesteps(keys, schedule)

    def network_and_target(self, network: Network) -> tuple[Network, Target]:
        """The network and its target; for target edm, the preconditioned network and x0."""
        if self.target == "edm":
            return preconditioning.precondition(self.noise_schedule, network, self.sigma_data), "x0"
        return network, self.target

    def _weight(self, snr: Float[Array, " b"], target: Target) -> Float[Array, " b"]:
        if self.target == "edm" and self.weighting == "simple":
            return preconditioning.weight(snr, self.sigma_data)
        return loss_weight(self.weighting, target, snr, self.gamma)
