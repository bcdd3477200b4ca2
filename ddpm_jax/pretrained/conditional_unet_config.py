"""Convert the config.json of diffusers' UNet2DConditionModel to our `ConditionalUNet`, and back."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.image_size import simplest
from ddpm_jax.models.unet_conditional import ConditionalUNet
from ddpm_jax.pretrained.json_settings import (
    VERSION,
    check_class,
    check_fixed,
    check_limits,
    lookup,
    validate,
)
from ddpm_jax.pretrained.unet_config import EMA_KEYS

CLASS = "UNet2DConditionModel"
SETTINGS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0.0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": [1],
    "attention_head_dim": [8],
    "use_linear_projection": False,
    "upcast_attention": False,
}
"""The values that diffusers gives to missing keys, of the keys that differ between networks.

`attention_head_dim` and `transformer_layers_per_block` are a number here too, for all levels.
`upcast_attention` says what is always done here: the softmax of attention is float32.
"""
FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1.0,
    "dropout": 0.0,
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
"""The only supported values of the other keys: those that diffusers gives to missing keys."""
DEFAULTS = SETTINGS | FIXED
REASONS = {
    "addition_embed_type": "that is Stable Diffusion XL or another network with more conditions "
    "than a text, which is not supported",
    "class_embed_type": "networks with class labels are not supported",
    "num_class_embeds": "networks with class labels are not supported",
    "time_cond_proj_dim": "latent consistency models are not supported",
}
PER_LEVEL = ("attention_head_dim", "transformer_layers_per_block")
LARGEST = {
    "layers_per_block": 8,
    "block_out_channels": 2**14,
    "sample_size": 2**14,
    "in_channels": 2**10,
    "out_channels": 2**10,
    "norm_num_groups": 2**14,
    "cross_attention_dim": 2**16,
    "attention_head_dim": 2**14,
    "transformer_layers_per_block": 16,
}
DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
"""{type of a block: whether it has transformers}."""
RENAMED = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "flip_sin_to_cos": "flip_sin_to_cos",
    "freq_shift": "freq_shift",
    "layers_per_block": "layers_per_level",
    "norm_num_groups": "groups",
    "norm_eps": "norm_eps",
    "cross_attention_dim": "context_dim",
    "use_linear_projection": "linear_projection",
}
"""{key: our setting of the same value}."""


def conditional_unet_from_config(
    config: Mapping[str, Any], filename: str = "config.json"
) -> ConditionalUNet:
    """The network that a config.json describes. Raise ValueError for an unsupported config."""
    check_class(config, CLASS, filename)
    in_lists = {
        key: [value] if key in PER_LEVEL and isinstance(value, int) else value
        for key, value in config.items()
    }
    settings = validate(in_lists, DEFAULTS, EMA_KEYS, filename)
    check_fixed(settings, FIXED, REASONS, filename)
    check_limits(settings, DEFAULTS, LARGEST, filename)
    size = settings["sample_size"]
    if size is None:
        raise ValueError(f"{filename}: sample_size must be a whole number, not None.")
    widths = settings["block_out_channels"]
    down = [lookup(DOWN_BLOCKS, name, "down_block_types") for name in settings["down_block_types"]]
    up = [lookup(UP_BLOCKS, name, "up_block_types") for name in settings["up_block_types"]]
    if len(down) != len(widths) or up[::-1] != down:
        raise ValueError(
            f"{filename}: down_block_types and up_block_types must name the same blocks, in "
            "opposite order, one for each of block_out_channels."
        )
    heads, transformer_layers = (
        settings[key] * len(widths) if len(settings[key]) == 1 else settings[key]
        for key in PER_LEVEL
    )
    settings["freq_shift"] = float(settings["freq_shift"])
    return ConditionalUNet(
        sample_size=simplest(size),
        widths=tuple(widths),
        cross_attention=tuple(down),
        heads=tuple(heads),
        transformer_layers=tuple(transformer_layers),
        init_scheme="torch",
        **{ours: settings[key] for key, ours in RENAMED.items()},
    )


def conditional_unet_to_config(net: ConditionalUNet) -> dict[str, Any]:
    """The config.json of a network."""
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in net.cross_attention]
    return {
        **FIXED,
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "sample_size": net.sample_size,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "block_out_channels": list(net.widths),
        "attention_head_dim": list(net.heads),
        "transformer_layers_per_block": list(net.transformer_layers),
        "upcast_attention": False,
        **{key: getattr(net, ours) for key, ours in RENAMED.items()},
    }
