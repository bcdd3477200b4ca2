"""What samples are drawn by: a network, what it was trained for, and how to draw."""

import dataclasses
from typing import Literal

from ddpm_jax.diffusion import Diffusion, Sampling
from ddpm_jax.errors import check
from ddpm_jax.guidance import check_guidance
from ddpm_jax.models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and how it draws pictures, checked together."""

    model: Model
    objective: Diffusion = dataclasses.field(default_factory=Diffusion)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self):
        object.__setattr__(self, "sampling", self.objective.resolved(self.sampling))
        self.objective.steps(self.sampling)
        check(self.model.channels in (1, 3), f"channels must be 1 (grey) or 3 (RGB), not {self.model.channels}")
        check(
            self.model.learned_variance == self.objective.learns_variance,
            "model.learned_variance and objective.variance learned_range (or learned) go together: set both or neither",
        )
        check_guidance(self.sampling.guidance_scale, self.model.label_dropout)

    @property
    def resize(self) -> Literal["crop", "squash"]:
        """How a picture is brought to the network's size."""
        return "crop"
