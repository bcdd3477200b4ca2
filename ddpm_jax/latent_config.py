"""The config of a run on latents, which begins with the run of their autoencoder."""

import dataclasses
from typing import Any, ClassVar

from ddpm_jax.config import Config, Training, config_from_json
from ddpm_jax.errors import check
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """The first of the two runs of a `LatentConfig`, over the same images."""

    model: ImageAutoencoder
    training: Training
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema: Ema = dataclasses.field(default_factory=Ema)

    def __post_init__(self):
        check(
            isinstance(self.model, ImageAutoencoder),
            "autoencoder.model must be an image_autoencoder.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig(Config):
    """All settings of two runs: an autoencoder, then a network of its latents and of captions."""

    has_autoencoder: ClassVar[bool] = True

    autoencoder: AutoencoderRun
    captions: tuple[str, ...] = ()
    """Captions of the sample grids, which repeat; if there are none, the first ones of the data."""

    def __post_init__(self):
        super().__post_init__()
        shape = self.autoencoder.model.latent_shape
        check(
            self.model.image_shape == shape,
            f"The autoencoder makes latents of {shape}, but the network takes "
            f"{self.model.image_shape}: change model.image_size and model.channels, or "
            "autoencoder.model.",
        )
        check(
            getattr(self.data, "caption_column", None) is not None,
            "The network learns from captions, and the data is read without: set "
            "--data.caption-column, with --data folder or huggingface.",
        )
        check(not self.data.flip, "Latents cannot be flipped as images are: leave out --data.flip.")

    @property
    def autoencoder_config(self) -> Config:
        """The config of the first run."""
        own = vars(self.autoencoder)
        shared = {name: getattr(self, name) for name in ("data", "parallel", "checkpoint", "log")}
        return Config(**own, **shared)


def read_config(value: Any) -> Config:
    """Read the config of a run as `config_from_json` does, of a run on latents or of another."""
    is_latent = isinstance(value, dict) and "autoencoder" in value
    return config_from_json(value, LatentConfig if is_latent else Config)
