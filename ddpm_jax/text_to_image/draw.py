"""Draw images from prompts, images and masks, in batches. The task follows from what is given."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, UInt8
from tqdm import tqdm

from ddpm_jax.data.pixels import to_floats, to_uint8
from ddpm_jax.devices import parallel
from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.diffusion.guidance import bind, guide
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.generation.generate import chunk_count
from ddpm_jax.generation.sampling import Sampling, build_sampler
from ddpm_jax.generation.scheduler_grids import noise_scale
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.samplers import sample_keys
from ddpm_jax.text_to_image.generate import image_to_image, inpaint, text_to_image
from ddpm_jax.text_to_image.images import paste_known, shrink_mask
from ddpm_jax.text_to_image.latents import decode, encode_moments, posterior_sample
from ddpm_jax.text_to_image.noise import Noise, key_noise, torch_seed_noise
from ddpm_jax.text_to_image.prompts import encode_text, tokenize
from ddpm_jax.text_to_image.request import Request, read_request

MIN_CHUNKS = 20


class Plan(NamedTuple):
    """A request for a model, with all that its batches share."""

    model: StableDiffusion
    request: Request
    sampling: Sampling
    grid: GridRow
    shape: tuple[int, int, int]
    """Shape of one latent."""
    text: TextCondition
    """A row per prompt."""
    empty: TextCondition
    """A row per negative prompt."""
    images: UInt8[np.ndarray, "n h w 3"] | None
    masks: Bool[np.ndarray, "m h w 1"] | None
    moments: Float[Array, "n h w k2"] | None
    """Moments of the encoded images."""
    masked_moments: Float[Array, "n h w k2"] | None
    """Moments of the encoded images without what is redrawn, for networks that inpaint."""

    @property
    def starts_from_noise(self) -> bool:
        """Whether the first latents are noise alone."""
        return self.images is None or (
            self.masks is not None and self.request.strength in (None, 1)
        )

    @property
    def keeps_known(self) -> bool:
        """Whether each step resets known latents. Inpainting networks get them as input instead."""
        return self.masks is not None and not self.model.inpaints

    @property
    def encodes_images(self) -> bool:
        """Whether the images are encoded. A network that inpaints can do without."""
        return self.images is not None and (self.keeps_known or not self.starts_from_noise)


class Batch(NamedTuple):
    """A drawn batch of images, of which the last ones may only fill it."""

    indices: Int[np.ndarray, " b"]
    text: TextCondition
    latents: Float[Array, "b h w c"]
    states: Float[Array, "steps b h w c"] | None
    """The latents before each row of the grid, if they were kept."""


def draw_images(
    model: StableDiffusion,
    request: Request,
    sampling: Sampling | None = None,
    *,
    batch_size: int = 1,
    progress: bool = True,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Draw the images of a request as `draw_pixels` does, as uint8.

    Pixels outside a mask are those of the resized image.
    """
    plan = make_plan(model, request, sampling or model.sampling)
    batches = draw_batches(plan, batch_size, progress)
    return to_images(plan, np.concatenate([decode_batch(plan, batch) for batch in batches]))


def draw_pixels(
    model: StableDiffusion,
    request: Request,
    sampling: Sampling | None = None,
    *,
    batch_size: int = 1,
    progress: bool = False,
) -> Float[np.ndarray, "n h w 3"]:
    """Draw the images of a request, in batches of one compiled program. Pixels are about [-1, 1].

    Image i depends neither on the batch size nor on the devices, except for rounding. `sampling`
    replaces the model's. Raise ValueError for a request that does not fit the model.
    """
    plan = make_plan(model, request, sampling or model.sampling)
    batches = draw_batches(plan, batch_size, progress)
    return np.concatenate([decode_batch(plan, batch) for batch in batches])


def draw_batches(
    plan: Plan, batch_size: int, progress: bool, keep_states: bool = False
) -> Iterator[Batch]:
    """Yield the images of a plan in batches of one compiled program."""
    total = plan.request.total
    batch_size = parallel.padded_batch_size(batch_size, total)
    steps = len(plan.grid.i)
    with tqdm(
        total=-(-total // batch_size) * steps,
        desc=f"{total} images, {steps} steps",
        disable=not progress,
    ) as bar:
        for start in range(0, total, batch_size):
            yield draw_batch(plan, np.arange(start, start + batch_size), bar.update, keep_states)


def decode_batch(plan: Plan, batch: Batch) -> Float[np.ndarray, "n h w 3"]:
    """Decode a batch to pixels. Images that only fill the batch are left out."""
    is_asked_for = batch.indices < plan.request.total
    return np.asarray(decode(plan.model, batch.latents[: is_asked_for.sum()]))


def to_images(plan: Plan, pixels: Float[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """The images of all pixels of a plan. Outside of masks they are the images given."""
    drawn = to_uint8(pixels)
    if plan.images is None or plan.masks is None:
        return drawn
    indices = np.arange(plan.request.total)
    images = plan.images[indices % len(plan.images)]
    return paste_known(drawn, images, plan.masks[indices % len(plan.masks)])


def make_plan(model: StableDiffusion, request: Request, sampling: Sampling) -> Plan:
    """Encode prompts and images, and choose size and grid. Raise ValueError as `draw_images`."""
    grid, images, masks, height, width = read_request(model, request, sampling)
    # Copy the parameters to all devices once, not for every batch.
    model = model._replace(
        unet_params=parallel.replicate(model.unet_params),
        autoencoder_params=parallel.replicate(model.autoencoder_params),
    )
    masked_moments = None
    if images is not None and masks is not None and model.inpaints:
        kept = to_floats(images) * ~masks  # broadcasts one mask to all images
        masked_moments = encode_moments(model, kept)
    text = encode_text(model, tokenize(model, request.prompts), skip=request.clip_skip)
    empty = encode_text(model, tokenize(model, request.negative_prompts))
    factor = model.autoencoder.factor
    shape = (height // factor, width // factor, model.autoencoder.latent_channels)
    plan = Plan(
        model, request, sampling, grid, shape, text, empty, images, masks, None, masked_moments
    )
    if images is None or not plan.encodes_images:
        return plan
    return plan._replace(moments=encode_moments(model, to_floats(images)))


def draw_batch(
    plan: Plan,
    indices: Int[np.ndarray, " b"],
    on_steps: Callable[[int], None] = lambda steps: None,
    keep_states: bool = False,
) -> Batch:
    """Draw the latents of the images at these indices as one batch."""
    # PyTorch's seeds have 64 bits.
    keys = sample_keys(int(plan.request.seed) % 2**32, jnp.asarray(indices))
    noise = _noise(plan, indices, keys)
    known = _known(plan, indices, noise)
    arrays = (keys, noise, known, *_conditions(plan, indices, noise))
    keys, noise, known, text, empty = parallel.shard(arrays)
    sampler = build_sampler(plan.model.objective, plan.sampling)
    network = guided_network(plan.model, plan.sampling, text, empty)
    denoise = sampling_denoiser(plan.model.objective, network, plan.sampling)
    walk = (keys, denoise, sampler, plan.grid)
    steps = len(plan.grid.i)
    std = noise_scale(plan.sampling.grid_kind, plan.sampling.spacing, plan.grid)
    chunks = chunk_count(steps, steps if keep_states else MIN_CHUNKS)
    if plan.keeps_known:
        latents, masks = known
        start = std * noise.initial if plan.starts_from_noise else None
        states = inpaint(*walk, latents, masks, noise.initial, start=start, chunks=chunks)
    elif plan.starts_from_noise:
        states = text_to_image(*walk, noise.initial, initial_std=std, chunks=chunks)
    else:
        states = image_to_image(*walk, known[0], noise.initial, chunks=chunks)
    latents = next(states)
    kept = []
    for state in states:
        if keep_states:
            kept.append(latents)
        # Block, so that a progress bar counts computed steps, not queued ones.
        latents = jax.block_until_ready(state)
        on_steps(steps // chunks)
    return Batch(indices, text, latents, jnp.stack(kept) if keep_states else None)


def guided_network(
    model: StableDiffusion, sampling: Sampling, text: TextCondition, empty: TextCondition
) -> Network:
    """The network (xt, t) -> output for these conditions, guided as `sampling` sets it.

    Prompts, scale and rescale may change without recompilation.
    """
    apply = parallel.per_shard(_apply_in(model.unet, model.dtype))
    network = Partial(apply, model.unet_params)
    if not sampling.guided:
        return bind(network, text)
    return guide(
        network,
        text,
        empty,
        sampling.guidance_scale,
        interval=sampling.guidance_interval,
        rescale=float(sampling.guidance_rescale or 0),
    )


@functools.cache
def _apply_in(unet: ConditionalUNet, dtype: str) -> Callable:
    """One function per network and type, so that `jit` does not compile again."""
    return functools.partial(unet.apply, dtype=jnp.dtype(dtype))


def _noise(plan: Plan, indices: np.ndarray, keys: Array) -> Noise:
    if plan.request.noise == "jax":
        return key_noise(keys, plan.shape)
    # The last batch is padded with images that may lie beyond the last seed.
    seeds = [(int(plan.request.seed) + int(i)) % 2**64 for i in indices]
    return torch_seed_noise(plan.request.noise, seeds, plan.shape, plan.encodes_images)


def _known(plan: Plan, indices: np.ndarray, noise: Noise) -> tuple[Array, Array | None] | None:
    """The latents of the image of each sample, and its mask in the size of the latents."""
    if plan.moments is None:
        return None
    latents = posterior_sample(plan.moments[indices % len(plan.moments)], noise.image)
    return plan.model.autoencoder.scaling_factor * latents, _latent_masks(plan, indices)


def _latent_masks(plan: Plan, indices: np.ndarray) -> Array | None:
    if plan.masks is None:
        return None
    masks = shrink_mask(plan.masks, plan.model.autoencoder.factor)
    return jnp.asarray(masks[indices % len(masks)])


def _conditions(
    plan: Plan, indices: np.ndarray, noise: Noise
) -> tuple[TextCondition, TextCondition]:
    """The conditions of the prompts and of the negative prompts."""
    image = None
    if plan.masked_moments is not None:
        moments = plan.masked_moments[indices % len(plan.masked_moments)]
        latents = plan.model.autoencoder.scaling_factor * posterior_sample(moments, noise.masked)
        masks = _latent_masks(plan, indices)
        image = jnp.concatenate([jnp.asarray(masks, jnp.float32), latents], -1)
    # The last batch is padded with indices beyond the last prompt.
    prompts = indices // plan.request.num_images % len(plan.text.states)
    text = TextCondition(plan.text.states[prompts], image)
    return text, TextCondition(plan.empty.states[prompts % len(plan.empty.states)], image)
