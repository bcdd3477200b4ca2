"""Convert the config.json of diffusers' AutoencoderKL to our `Autoencoder`, and back."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.image_size import simplest
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.pretrained.json_settings import (
    VERSION,
    check_class,
    check_fixed,
    check_limits,
    lookup,
    validate,
)

CLASS = "AutoencoderKL"
SAMPLE_SIZE = 32
SETTINGS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": None,
    "scaling_factor": 0.18215,
    "force_upcast": True,
}
"""The values that diffusers gives to missing keys, of the keys that differ between networks.

`force_upcast` says what is the default here: images are encoded and decoded in float32.
`sample_size` is one number or two; a missing one counts as `SAMPLE_SIZE`.
"""
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""The only supported values of the other keys: those that diffusers gives to missing keys."""
DEFAULTS = SETTINGS | FIXED
REASONS = dict.fromkeys(
    ("shift_factor", "latents_mean", "latents_std", "use_quant_conv", "use_post_quant_conv"),
    "autoencoders of later models than Stable Diffusion 1 and 2 are not supported",
)
LARGEST = {
    "layers_per_block": 8,
    "block_out_channels": 2**14,
    "sample_size": 2**14,
    "in_channels": 2**10,
    "latent_channels": 2**10,
    "norm_num_groups": 2**14,
}
RENAMED = {
    "in_channels": "channels",
    "layers_per_block": "layers_per_level",
    "latent_channels": "latent_channels",
    "norm_num_groups": "groups",
    "scaling_factor": "scaling_factor",
}
"""{key: our setting of the same value}."""


def autoencoder_from_config(
    config: Mapping[str, Any], filename: str = "config.json"
) -> Autoencoder:
    """The network that a config.json describes. Raise ValueError for an unsupported config."""
    check_class(config, CLASS, filename)
    settings = validate(config, DEFAULTS, (), filename)
    check_fixed(settings, FIXED, REASONS, filename)
    check_limits(settings, DEFAULTS, LARGEST, filename)
    if settings["out_channels"] != settings["in_channels"]:
        raise ValueError(
            f"{filename}: out_channels must be in_channels, {settings['in_channels']}."
        )
    widths = settings["block_out_channels"]
    for key in ("down_block_types", "up_block_types"):
        (only,) = SETTINGS[key]
        for name in settings[key]:
            lookup({only: only}, name, key)
        if len(settings[key]) != len(widths):
            raise ValueError(f"{filename}: {key} must name one block for each of {widths}.")
    return Autoencoder(
        sample_size=simplest(settings["sample_size"] or SAMPLE_SIZE),
        widths=tuple(widths),
        init_scheme="torch",
        **{ours: settings[key] for key, ours in RENAMED.items()},
    )


def autoencoder_to_config(net: Autoencoder) -> dict[str, Any]:
    """The config.json of a network."""
    return {
        **FIXED,
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "sample_size": net.sample_size,
        "out_channels": net.channels,
        "down_block_types": SETTINGS["down_block_types"] * len(net.widths),
        "up_block_types": SETTINGS["up_block_types"] * len(net.widths),
        "block_out_channels": list(net.widths),
        "force_upcast": True,
        **{key: getattr(net, ours) for key, ours in RENAMED.items()},
    }
