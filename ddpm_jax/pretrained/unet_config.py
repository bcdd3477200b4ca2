"""Convert the config.json of diffusers' UNet2DModel to our `UNet`, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

from ddpm_jax.image_size import ImageSize, simplest
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.json_settings import (
    VERSION,
    check_class,
    check_limits,
    float_keys,
    lookup,
    validate,
)

CLASS = "UNet2DModel"
MID_BLOCK = "UNetMidBlock2D"
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0.0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1.0,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""The values that diffusers gives to missing keys. A key that is null is not missing."""

NULLABLE = {
    "mid_block_type",
    "downsample_type",
    "upsample_type",
    "attention_head_dim",
    "norm_num_groups",
}
"""Keys that may be null although their default is not."""

LARGEST = {
    "layers_per_block": 64,
    "block_out_channels": 2**14,
    "sample_size": 2**14,
    "in_channels": 2**10,
    "time_embedding_dim": 2**16,
    "attn_norm_num_groups": 2**14,
    "num_class_embeds": 2**20,
    "num_train_timesteps": 2**20,
}
"""Limits that no real network reaches (`json_settings.check_limits`)."""

EMA_KEYS = {
    "decay",
    "inv_gamma",
    "power",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
}
"""Keys that diffusers' EMAModel adds to the config of the network it averages."""

# {block type: (whether the level has attention, how it resamples to the next level)}. None stands
# for downsample_type or upsample_type.
BLOCKS = {
    "{}Block2D": (False, "conv"),
    "Attn{}Block2D": (True, None),
    "Skip{}Block2D": (False, "skip"),
    "AttnSkip{}Block2D": (True, "skip"),
    "Resnet{}sampleBlock2D": (False, "resnet"),
}
MIDDLES = {
    (None, True): "none",
    (None, False): "none",
    (MID_BLOCK, True): "attention",
    (MID_BLOCK, False): "plain",
}
"""{(mid_block_type, add_attention): our setting `middle`}."""

RENAMED = {
    "in_channels": "channels",
    "center_input_sample": "center_input",
    "time_embedding_dim": "time_embedding_dim",
    "freq_shift": "freq_shift",
    "flip_sin_to_cos": "flip_sin_to_cos",
    "layers_per_block": "layers_per_level",
    "mid_block_scale_factor": "middle_scale",
    "dropout": "dropout",
    "attention_head_dim": "head_dim",
    "norm_num_groups": "groups",
    "norm_eps": "norm_eps",
}
"""{key: our setting of the same value}."""

MAPPED: dict[str, tuple[str, dict]] = {
    "time_embedding_type": (
        "time_embedding",
        {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"},
    ),
    "downsample_padding": ("symmetric_padding", {0: False, 1: True}),
    "act_fn": (
        "activation",
        {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"},
    ),
    "resnet_time_scale_shift": ("modulation", {"default": "shift", "scale_shift": "scale_shift"}),
    "class_embed_type": (
        "labels_are",
        {None: "classes", "timestep": "numbers", "identity": "vectors"},
    ),
}
"""{key: (our setting, {value in diffusers: our value})}."""


def unet_from_config(config: Mapping[str, Any], image_size: ImageSize | None = None) -> UNet:
    """The network that a config.json describes. Raise ValueError for an unsupported config.

    `image_size` is used if the config has none. The parameters do not depend on it.
    """
    check_class(config, CLASS, "config.json")
    settings = validate(config, DEFAULTS, EMA_KEYS, "config.json", NULLABLE)
    check_limits(settings, DEFAULTS, LARGEST, "config.json")
    settings["act_fn"] = settings["act_fn"].lower()
    channels = settings["in_channels"]
    out_channels = settings["out_channels"]
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"out_channels {out_channels} is not supported: "
            f"it must be in_channels, {channels}, or twice that."
        )
    down_names = settings["down_block_types"]
    up_names = reversed(settings["up_block_types"])
    down = [_level(name, "Down", settings["downsample_type"]) for name in down_names]
    up = [_level(name, "Up", settings["upsample_type"]) for name in up_names]
    settings |= {key: float(settings[key]) for key in float_keys(DEFAULTS)}
    renamed = {ours: settings[key] for key, ours in RENAMED.items()}
    mapped = {ours: lookup(names, settings[key], key) for key, (ours, names) in MAPPED.items()}
    # With scale_shift modulation, null means that the middle attention has no norm.
    middle_groups = settings["attn_norm_num_groups"]
    if middle_groups is None and mapped["modulation"] != "shift":
        middle_groups = 0
    size = settings["sample_size"] or image_size
    if size is None:
        raise ValueError("config.json has no sample_size: pass image_size to load_pretrained.")
    middle = (settings["mid_block_type"], settings["add_attention"])
    learned_times = mapped["time_embedding"] == "learned"
    net = UNet(
        image_size=simplest(size),
        learned_variance=out_channels == 2 * channels,
        num_classes=settings["num_class_embeds"] if mapped["labels_are"] == "classes" else None,
        widths=tuple(settings["block_out_channels"]),
        attention=tuple(attention for attention, _ in down),
        up_attention=tuple(attention for attention, _ in up),
        down_kinds=tuple(kind for _, kind in down),
        up_kinds=tuple(kind for _, kind in up),
        init_scheme="torch",
        middle=lookup(MIDDLES, middle, "mid_block_type and add_attention"),
        middle_groups=middle_groups,
        timesteps=settings["num_train_timesteps"] if learned_times else None,
        **renamed,
        **mapped,
    )
    _check_exportable(net)
    return net


def _level(name: str, direction: str, resample_type: str | None) -> tuple[bool, Any]:
    """Whether a block type, such as AttnDownBlock2D, has attention, and how it resamples."""
    levels = {pattern.format(direction): level for pattern, level in BLOCKS.items()}
    prefix = direction.lower()
    attention, kind = lookup(levels, str(name).removeprefix("UNetRes"), f"{prefix}_block_types")
    if kind is None:
        kinds = {None: "conv", "conv": "conv", "resnet": "resnet"}
        kind = lookup(kinds, resample_type, f"{prefix}sample_type")
    return attention, kind


def unet_to_config(net: UNet) -> dict[str, Any]:
    """The config.json of a network. Raise ValueError if UNet2DModel cannot represent it."""
    _check_exportable(net)
    # By default, diffusers' middle attention has no norm with scale_shift: write the groups.
    middle_groups = net.middle_groups or None
    if net.modulation == "scale_shift" and net.middle_groups is None:
        middle_groups = net.groups_of(net.widths[-1])
    has_classes = net.labels_are == "classes" and net.num_classes is not None
    return {
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "sample_size": net.image_size,
        "out_channels": net.out_channels,
        "down_block_types": [
            _block_name(attention, kind, "Down") for _, attention, kind in net.down_levels
        ],
        "mid_block_type": None if net.middle == "none" else MID_BLOCK,
        "up_block_types": [
            _block_name(attention, kind, "Up") for _, attention, kind in reversed(net.up_levels)
        ],
        "block_out_channels": list(net.widths),
        "downsample_type": next(iter(_attention_kinds(net.down_levels[:-1])), "conv"),
        "upsample_type": next(iter(_attention_kinds(net.up_levels[1:])), "conv"),
        "attn_norm_num_groups": middle_groups,
        "add_attention": net.middle == "attention",
        "num_class_embeds": net.label_count if has_classes else None,
        "num_train_timesteps": net.timesteps,
        **{key: getattr(net, ours) for key, ours in RENAMED.items()},
        **{key: _inverse(names, getattr(net, ours)) for key, (ours, names) in MAPPED.items()},
    }


def _check_exportable(net: UNet) -> None:
    """Raise ValueError for a network that UNet2DModel cannot represent."""
    others = [name for name, value in net.condition_settings.items() if value]
    if others not in ([], ["num_classes"]):
        raise ValueError(
            f"{CLASS} has no condition by {', '.join(others)}: only model.num_classes can be "
            "exported."
        )
    paths = {
        "down": (net.down_levels[:-1], net.channels),
        "up": (net.up_levels[1:], net.out_channels),
    }
    for direction, (levels, channels) in paths.items():
        kinds = sorted(_attention_kinds(levels))
        if len(kinds) > 1:
            raise ValueError(
                f"The {direction} levels with attention resample by {' and '.join(kinds)}: "
                f"{CLASS} allows only one kind."
            )
        if channels != 3 and any(kind == "skip" for _, _, kind in levels):
            raise ValueError(
                f"Skip levels on the {direction} path need 3 channels in {CLASS}: "
                f"this network has {channels}."
            )
    all_kinds = [kind for _, _, kind in net.down_levels + net.up_levels]
    if net.groups is None and any(kind != "skip" for kind in all_kinds):
        raise ValueError(
            f"The network has no norm groups: {CLASS} needs norm_num_groups "
            "unless all its levels are skip levels."
        )
    if net.middle_groups == 0 and net.modulation != "scale_shift":
        raise ValueError(
            f"The middle attention has no norm: {CLASS} allows that "
            "only with scale_shift modulation."
        )


def _attention_kinds(levels: Iterable[tuple[int, bool, Any]]) -> set[str]:
    """How levels with attention resample, which downsample_type or upsample_type sets."""
    return {kind for _, attention, kind in levels if attention and kind != "skip"}


def _inverse(names: Mapping, value: Any) -> Any:
    return next(key for key, ours in names.items() if ours == value)


def _block_name(attention: bool, kind: str, direction: str) -> str:
    for pattern, (has_attention, block_kind) in BLOCKS.items():
        same_kind = kind == block_kind or (block_kind is None and kind != "skip")
        if has_attention == attention and same_kind:
            return pattern.format(direction)
    raise AssertionError(f"no block type for {kind}")
