"""Read Stable Diffusion from a folder, to start a run on latents from it."""

from pathlib import Path

from ddpm_jax.errors import check
from ddpm_jax.generation.model_spec import LatentSpec
from ddpm_jax.image_size import ImageSize, sides, simplest
from ddpm_jax.models import Network, Params
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.image_autoencoder import ImageAutoencoder
from ddpm_jax.models.text_unet import TextUNet
from ddpm_jax.pretrained.stable_diffusion import (
    StableDiffusion,
    load_stable_diffusion,
    read_without_weights,
)
from ddpm_jax.pretrained.untrusted_files import brief
from ddpm_jax.text_to_image.tokenizer import make_tokenizer

CAPTION_DROPOUT = 0.1
"""Share of captions hidden when Stable Diffusion was trained (model card of version 1.4)."""


def read_text_spec(folder: Path) -> LatentSpec:
    """Read the networks and the objective of a folder. Needs no device.

    Raise FileNotFoundError or ValueError for an unsupported folder, and ImportError without the
    library `tokenizers`.
    """
    parts = read_without_weights(folder)
    check(
        not parts.inpaints,
        f"The network of {folder} takes a mask beside the latents, which no recipe trains: start "
        "from one that takes latents alone.",
    )
    autoencoder = _image_autoencoder(parts.autoencoder, parts.unet.sample_size)
    model = _text_unet(parts)
    _check_same(folder, "text_encoder", model.text_encoder, parts.text_encoder)
    _check_same(folder, "unet", model.unet, parts.unet)
    return LatentSpec(
        model=model,
        objective=parts.objective,
        sampling=parts.sampling,
        image_autoencoder=autoencoder,
    )


def read_text_params(path_or_repo: str | Path) -> Params:
    """Read the parameters of the networks, downloading them if needed.

    Raise as `load_stable_diffusion` does.
    """
    parts = load_stable_diffusion(path_or_repo)
    return {"text_encoder": parts.text_params, "unet": parts.unet_params}


def _text_unet(parts: StableDiffusion) -> TextUNet:
    text_encoder = parts.text_encoder
    unet = parts.unet
    tokenizer = make_tokenizer(parts.tokenizer_files)
    same_heads = len(set(unet.heads)) == 1
    return TextUNet(
        image_size=unet.sample_size,
        channels=unet.in_channels,
        label_dropout=CAPTION_DROPOUT,
        vocab_size=text_encoder.vocab_size,
        max_length=text_encoder.max_length,
        text_width=text_encoder.width,
        text_layers=text_encoder.layers,
        text_heads=text_encoder.heads,
        text_activation=text_encoder.activation,
        start_id=tokenizer.start,
        end_id=tokenizer.end,
        pad_id=tokenizer.pad,
        widths=unet.widths,
        attention=unet.cross_attention,
        heads=unet.heads[0] if same_heads else None,
        head_dim=None if same_heads else unet.widths[0] // unet.heads[0],
        linear_projection=unet.linear_projection,
        layers_per_level=unet.layers_per_level,
        groups=unet.groups,
        init_scheme=unet.init_scheme,
    )


def _image_autoencoder(net: Autoencoder, latent_size: ImageSize) -> ImageAutoencoder:
    height, width = sides(latent_size)
    return ImageAutoencoder(
        # That of vae/config.json is often the size of other images.
        image_size=simplest((net.factor * height, net.factor * width)),
        channels=net.channels,
        latent_channels=net.latent_channels,
        widths=net.widths,
        layers_per_level=net.layers_per_level,
        groups=net.groups,
        init_scheme=net.init_scheme,
    )


def _check_same(folder: Path, part: str, ours: Network, theirs: Network) -> None:
    """Raise ValueError for a network with settings that a `TextUNet` does not have."""
    own, other = vars(ours), vars(theirs)
    different = sorted(name for name in own if own[name] != other[name])
    check(
        not different,
        f"The {part} of {folder} has settings that cannot be trained here: "
        f"{', '.join(f'{name} {brief(other[name])}' for name in different)}.",
    )
