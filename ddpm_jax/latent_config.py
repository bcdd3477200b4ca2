"""The config of a run on latents, which begins with the run of their autoencoder."""

import dataclasses
from typing import Any, ClassVar

from ddpm_jax.config import Config, RunConfig, Training, config_from_json
from ddpm_jax.data import ImageSet
from ddpm_jax.data.values import Scales
from ddpm_jax.errors import check
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import END_ID, START_ID, TextUNet
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(RunConfig):
    """All settings of the run of an autoencoder."""

    FLAGS: ClassVar = "--autoencoder."
    FORMER_FIELDS: ClassVar = ("objective", "sampling")
    """Settings in the JSON of older runs, where they had no meaning."""

    model: ImageAutoencoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """The first of the two runs of a `LatentConfig`, over the same images."""

    model: ImageAutoencoder
    training: Training
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    ema: Ema = dataclasses.field(default_factory=Ema)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig(Config):
    """All settings of two runs: an autoencoder, then a network of its latents and of captions."""

    has_autoencoder: ClassVar[bool] = True

    model: TextUNet
    autoencoder: AutoencoderRun
    captions: tuple[str, ...] = ()
    """Captions to draw in sample grids, repeated to fill one; by default the first of the data."""

    def __post_init__(self):
        super().__post_init__()
        shape = self.autoencoder.model.latent_shape
        check(
            self.model.image_shape == shape,
            f"The autoencoder makes latents of {shape}, but the network takes "
            f"{self.model.image_shape}: change model.image_size and model.channels, or "
            "autoencoder.model.",
        )
        channels = self.autoencoder.model.channels
        check(
            channels == 3,
            f"The images of a run on latents are in colour: set autoencoder.model.channels to 3, "
            f"not {channels}.",
        )
        check(
            not self.log.channels,
            "The pictures of a run on latents are in colour: leave out --log.channels.",
        )
        check(
            getattr(self.data, "caption_column", None) is not None,
            "The network learns from captions, and the data is read without: set "
            "--data.caption-column, with --data folder or huggingface.",
        )
        check(
            self.evaluation.every is None,
            "A run on latents does not compare its samples with images: leave out "
            "--evaluation.every, and measure them by sample.py and ddpm_jax.evaluate --samples.",
        )
        special = (self.model.start_id, self.model.end_id, self.model.pad_id)
        check(
            not self.trains_autoencoder or special == (START_ID, END_ID, END_ID),
            "A run that learns its tokenizer chooses the special tokens itself: leave out "
            "model.start_id, end_id and pad_id.",
        )
        check(not self.data.flip, "Latents cannot be flipped as images are: leave out --data.flip.")

    @property
    def image_autoencoder(self) -> ImageAutoencoder:
        """The settings of the autoencoder."""
        return self.autoencoder.model

    @property
    def trains_autoencoder(self) -> bool:
        """Whether the run trains an autoencoder, not one with `init_from`, which uses another's."""
        return self.training.init_from is None

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        """The config of the first run."""
        own = vars(self.autoencoder)
        shared = {name: getattr(self, name) for name in ("data", "parallel", "checkpoint", "log")}
        return AutoencoderConfig(**own, **shared)

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        first = self.autoencoder_config.micro_batch_sizes if self.trains_autoencoder else ()
        return (*super().micro_batch_sizes, *first)

    def load_images(self, scales: Scales | None = None) -> ImageSet:
        return self.autoencoder_config.load_images(scales)


def read_config(value: Any) -> RunConfig:
    """Read a run's config; one with an autoencoder becomes a `LatentConfig`."""
    return config_from_json(value, _config_class(value))


def _config_class(value: Any) -> type[RunConfig]:
    if isinstance(value, dict) and "autoencoder" in value:
        return LatentConfig
    model = value.get("model") if isinstance(value, dict) else None
    is_autoencoder = isinstance(model, dict) and model.get("kind") == "image_autoencoder"
    return AutoencoderConfig if is_autoencoder else Config
