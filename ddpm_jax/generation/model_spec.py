"""A model spec: all that sampling needs to know beside the parameters."""

import dataclasses
from typing import ClassVar, Literal

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.errors import check
from ddpm_jax.generation.sampling import Sampling, check_sampling
from ddpm_jax.models import Model
from ddpm_jax.models.image_autoencoder import ImageAutoencoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network, its training objective and its sampling settings, checked together."""

    has_autoencoder: ClassVar[bool] = False
    """Whether the network's images are the latents of an autoencoder."""

    model: Model
    objective: Objective = dataclasses.field(default_factory=Objective)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def __post_init__(self):
        check_sampling(self.objective, self.sampling)
        check(
            self.model.denoises_latents == self.has_autoencoder,
            "A network of latents and a recipe that trains an autoencoder go together: start from "
            "--config emoji, and leave its --model as it is.",
        )
        check(
            self.model.learned_variance == self.objective.learns_variance,
            "model.learned_variance and objective.variance learned_range (or learned) go together: "
            "set both or neither.",
        )
        check_guidance(self.sampling.guidance_scale, self.model.label_dropout)
        check_condition_noise(self.model, self.sampling)

    @property
    def resize(self) -> Literal["crop", "squash"]:
        """How images are resized to the network's size."""
        return "crop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpec(ModelSpec):
    """A network of latents, with the settings of the autoencoder that makes them."""

    has_autoencoder: ClassVar[bool] = True

    image_autoencoder: ImageAutoencoder


def check_guidance(scale: float, label_dropout: float) -> None:
    """Raise ValueError for guidance of a network that was trained without label dropout."""
    check(
        scale == 1 or label_dropout > 0,
        "Guidance needs a network that was trained with and without its condition: set "
        "model.num_classes, or another condition, and model.label_dropout before training, or "
        "leave guidance_scale at 1.",
    )


def check_condition_noise(model: Model, sampling: Sampling) -> None:
    """Raise ValueError for more noise on condition images than the network was trained with."""
    check(
        not sampling.condition_noise or model.condition_channels is not None,
        "condition_noise is for a condition image, and this network takes none: leave it out.",
    )
    check(
        sampling.condition_noise <= model.condition_noise,
        f"The network was trained with noise up to {model.condition_noise:g} on its condition "
        f"image: lower condition_noise, which is {sampling.condition_noise:g}.",
    )
