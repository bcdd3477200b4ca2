"""A request for images from prompts, images and masks, and its checks before anything is drawn."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.errors import check, check_seed, check_settings
from ddpm_jax.generation.sampling import Sampling, check_sampling
from ddpm_jax.generation.walk import sampling_grid
from ddpm_jax.image_size import sides
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.text_to_image.generate import rows_for_strength
from ddpm_jax.text_to_image.images import ImageInput, read_pixels
from ddpm_jax.text_to_image.noise import check_noise_kind, seed_bits

IMAGE_STRENGTH = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request. Output i has prompt i // num_images; start images and masks repeat in order."""

    prompts: Sequence[str]
    negative_prompts: Sequence[str] = ("",)
    """One for all prompts, or one for each."""
    num_images: int = 1
    """Images per prompt."""
    images: Sequence[ImageInput] = ()
    """Images to start from."""
    masks: Sequence[ImageInput] = ()
    """White is redrawn; black and what is transparent are kept."""
    strength: float | None = None
    """Fraction of the steps to run, in (0, 1]; None for 0.8, or 1 with masks. With masks, 1 starts
    from pure noise."""
    height: int | None = None
    width: int | None = None
    """In pixels; None for the image's size without masks, else for the network's own."""
    seed: int = 0
    """In [0, 2**32), or in [0, 2**64) for PyTorch's numbers."""
    noise: str = "jax"
    """jax: image i depends on (seed, i). torch-cpu, torch-cuda: PyTorch's numbers for seed + i."""
    clip_skip: int = 0
    """Last layers of the text encoder to leave out for the prompts."""

    def __post_init__(self):
        check_settings(self)
        check(len(self.prompts) > 0, "There is no prompt: give at least one.")
        for name in ("prompts", "negative_prompts"):
            value = getattr(self, name)
            check(not isinstance(value, str), f"{name} must be a list of texts: write [{value!r}].")
        check(self.num_images >= 1, f"num_images must be at least 1, not {self.num_images}.")
        check_noise_kind(self.noise)
        check_seed(self.seed, bits=seed_bits(self.noise))
        prompts = len(self.prompts)
        negative = len(self.negative_prompts)
        check(
            negative in (1, prompts),
            f"{negative} negative prompts do not fit {prompts} prompts: give one, or one for each.",
        )
        images = len(self.images)
        masks = len(self.masks)
        check(not masks or images > 0, "A mask is for an image: give an image too.")
        check(self.strength is None or images > 0, "strength is for an image: give an image too.")
        check(
            masks in (0, 1, images),
            f"{masks} masks do not fit {images} images: give one, or one for each.",
        )
        check(
            images <= self.total,
            f"{images} images do not fit the {self.total} to be drawn: draw at least one of each.",
        )

    @property
    def total(self) -> int:
        """The number of images to draw."""
        return len(self.prompts) * self.num_images


def read_request(
    model: StableDiffusion, request: Request, sampling: Sampling
) -> tuple[GridRow, np.ndarray | None, np.ndarray | None, int, int]:
    """The grid, the images and masks, and their height and width, from a model without parameters.

    Raise ValueError for a request that does not fit the model.
    """
    check_sampling(model.objective, sampling)
    check(
        not sampling.condition_noise,
        "condition_noise is for a condition image, and this network takes none: leave it out.",
    )
    check(
        sampling.guided or not any(request.negative_prompts),
        "A negative prompt needs guidance: set guidance_scale too, or leave it out.",
    )
    check(
        sampling.guidance_scale != 0 or not any(request.prompts),
        "With guidance_scale 0 the prompt has no effect: set it to 1 for no guidance, which is any "
        "scale up to 1 in diffusers.",
    )
    model.text_encoder.check_skip(request.clip_skip)
    masked = len(request.masks) > 0
    check(
        masked or not model.inpaints,
        "This network inpaints: give an image and a mask of what to redraw.",
    )
    grid = sampling_grid(model.objective, sampling)
    if request.images:
        default_strength = 1.0 if masked else IMAGE_STRENGTH
        strength = default_strength if request.strength is None else request.strength
        grid = rows_for_strength(grid, strength)
    return grid, *read_pixels(
        request.images,
        request.masks,
        (request.height, request.width),
        sides(model.unet.sample_size),
        model.autoencoder.factor,
    )
