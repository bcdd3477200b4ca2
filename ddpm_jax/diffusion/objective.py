"""What is trained, as a recipe states it: a noise schedule, what the network predicts, at which t, by which loss."""

import dataclasses
import functools
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

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
from ddpm_jax.errors import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Learn to undo Gaussian noise (Ho et al. 2020): schedule, target, timesteps, loss."""

    schedule: Literal["linear", "scaled_linear", "squaredcos", "sigmoid", "flow", "edm"] = "linear"
    timesteps: int = 1000
    """T."""
    beta_start: float = 1e-4
    """First beta, where the schedule is a ramp: squaredcos, flow and edm have no use for it."""
    beta_end: float = 0.02
    """Last beta, where the schedule is a ramp."""
    zero_terminal_snr: bool = False
    """Rescale the betas so that x_T holds no signal at all; needs a target other than eps."""
    target: Literal["eps", "x0", "v", "flow", "edm"] = "eps"
    """What the network predicts; edm: x0, by a network preconditioned as in Karras et al. 2022."""
    sigma_data: float = 0.5
    """Standard deviation of the images in [-1, 1], for target edm."""
    timestep_sampling: Literal["uniform", "lognormal", "importance"] = "uniform"
    """How t is drawn: lognormal by noise level, as EDM does; importance by the losses so far."""
    log_sigma_mean: float = -1.2
    """Mean of ln(sigma) where times are lognormal."""
    log_sigma_std: float = 1.2
    """Standard deviation of ln(sigma) where times are lognormal."""
    weighting: Weighting = "simple"
    """How errors at different noise levels count; simple: all the same in what the network predicts."""
    gamma: float | None = None
    """The weighting's gamma; None for 5 (min_snr), 4 (soft_min_snr) or 1 (p2)."""
    loss_kind: Literal["simple", "hybrid", "vlb"] = "simple"
    """The loss: L_simple, that with a share of the variational bound, or the bound itself."""
    variance: Variance = "fixed_small"
    """That of the reverse step in the bound; learned and learned_range need model.learned_variance."""

    def __post_init__(self):
        for name, kind in get_type_hints(Objective).items():
            if get_origin(kind) is Literal:
                value, valid = getattr(self, name), get_args(kind)
                check(value in valid, f"unknown {name} {value!r}; there are: {', '.join(valid)}")
        start, end = self.beta_start, self.beta_end
        check(self.timesteps >= 1, f"timesteps must be at least 1, not {self.timesteps}")
        check(
            0 < start <= end < 1, f"betas must satisfy 0 < start <= end < 1, not {start} and {end}"
        )
        check(self.log_sigma_std > 0, f"log_sigma_std must be positive, not {self.log_sigma_std}")
        check(self.sigma_data > 0, f"sigma_data must be positive, not {self.sigma_data}")
        gamma = self.gamma
        check(gamma is None or gamma > 0, f"gamma must be positive, not {gamma}")
        self._check_together()

    def _check_together(self) -> None:
        check(
            self.timesteps >= 2 or not self.zero_terminal_snr,
            "zero_terminal_snr needs timesteps of at least 2: the only one would be pure noise",
        )
        check(
            self.gamma is None or self.weighting != "simple",
            "gamma is for weighting min_snr, soft_min_snr or p2",
        )
        check(
            self.target != "eps" or not (self.zero_terminal_snr or self.schedule == "flow"),
            "with zero terminal SNR, as on the schedule flow, x_T says nothing of x0 through eps: use target x0 or v",
        )
        check(
            not self.learns_variance or self.loss_kind != "simple",
            f"L_simple does not train the variance: with variance {self.variance} set bound hybrid or vlb",
        )
        check(
            self.learns_variance or self.loss_kind != "hybrid",
            "the bound's share of L_hybrid trains a learned variance alone: set variance learned_range or learned",
        )
        check(
            self.loss_kind == "simple" or self.timestep_sampling != "lognormal",
            f"the bound is a sum over whole timesteps: with bound {self.loss_kind} set times uniform or importance",
        )
        check(
            self.loss_kind != "vlb" or self.weighting == "simple",
            "the bound has its own weights: with bound vlb leave weighting at simple",
        )

    @property
    def learns_variance(self) -> bool:
        """Whether the network has to say the variance of the reverse step."""
        return self.variance.startswith("learned")

    def betas(self) -> np.ndarray:
        """The schedule's betas (T,), float64."""
        ramp = self.schedule in ("linear", "scaled_linear", "sigmoid")
        options = {"beta_start": self.beta_start, "beta_end": self.beta_end} if ramp else {}
        betas = BETAS[self.schedule](self.timesteps, **options)
        return zero_terminal_snr(betas) if self.zero_terminal_snr else betas

    @functools.cached_property
    def noise_schedule(self) -> NoiseSchedule:
        """The schedule's tables, computed once."""
        with (
            jax.ensure_compile_time_eval()
        ):  # arrays also where it is first asked for within a trace
            return from_betas(self.betas())

    def loss(
        self,
        keys: Key[Array, " b"],
        network: Network,
        images: Float[Array, "b h w c"],
        t: Int[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """The loss of each example, images in [-1, 1]; at timesteps drawn for it, unless they are given."""
        schedule = self.noise_schedule
        network, target = self.network_and_target(network)
        if t is None and self.timestep_sampling == "lognormal":
            t = lognormal_timesteps(keys, schedule, self.log_sigma_mean, self.log_sigma_std)
        elif t is None:
            t = uniform_timesteps(keys, schedule)
        parts = keys, schedule, network, images, target
        if self.loss_kind == "vlb":
            return vlb_loss(*parts, self.variance, t=t)
        weight = self._weight(schedule.snr(t), target)
        if self.loss_kind == "hybrid":
            return hybrid_loss(*parts, self.variance, t=t, weight=weight)
        return simple_loss(*parts, t=t, weight=weight)

    def network_and_target(self, network: Network) -> tuple[Network, Target]:
        """The network with EDM's preconditioning, if it has it, and what that predicts."""
        if self.target == "edm":
            return preconditioning.precondition(self.noise_schedule, network, self.sigma_data), "x0"
        return network, self.target

    def _weight(self, snr: Float[Array, " b"], target: Target) -> Float[Array, " b"]:
        if self.target == "edm" and self.weighting == "simple":
            return preconditioning.weight(snr, self.sigma_data)
        return loss_weight(self.weighting, target, snr, self.gamma)
