"""The config.json of diffusers' UNet2DModel and our `UNet`, each from the other."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import check
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.json_settings import VERSION, lookup, validate

CLASS = "UNet2DModel"
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
"""What a key that is missing stands for, in diffusers; null is another thing."""

NULLABLE = {
    "mid_block_type",
    "downsample_type",
    "upsample_type",
    "attention_head_dim",
    "norm_num_groups",
}
"""Keys that may be null beside those whose default is null."""

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
"""What no net reaches; beyond it drawing up the net alone would take memory or time without end."""
MAX_NUMBER, MAX_LEVELS = 10**6, 16

EMA_KEYS = {
    "decay",
    "inv_gamma",
    "power",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
}
"""Keys that diffusers' moving averages leave in the config of the net they average."""

# What a type of block says of its level: whether it has attention, and how it goes over to the next, None for
# as downsample_type or upsample_type says.
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
    (CLASS_OF_MIDDLE := "UNetMidBlock2D", True): "attention",
}
MIDDLES[CLASS_OF_MIDDLE, False] = "plain"

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
"""Keys whose value is that of a setting of ours."""

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
"""Keys with a setting of ours, and what of it stands for their values."""


def unet_from_config(config: Mapping[str, Any], image_size: int | None = None) -> UNet:
    """The net that a config.json describes; raises ValueError for what is not understood.

    `image_size` is for configs that name none; the parameters do not depend on it.
    """
    check(
        config.get("_class_name", CLASS) == CLASS,
        f"this is a {config.get('_class_name')}, not a {CLASS}",
    )
    said = validate(config, DEFAULTS, EMA_KEYS, "config.json", NULLABLE)
    _check_sizes(said)
    said["act_fn"] = said["act_fn"].lower()
    channels, out = said["in_channels"], said["out_channels"]
    check(
        out in (channels, 2 * channels),
        f"out_channels {out} is neither in_channels {channels} nor twice that",
    )
    down = [_block(name, "Down", said["downsample_type"]) for name in said["down_block_types"]]
    up = [_block(name, "Up", said["upsample_type"]) for name in reversed(said["up_block_types"])]
    said |= {
        key: float(said[key]) for key, default in DEFAULTS.items() if isinstance(default, float)
    }
    same = {ours: said[key] for key, ours in RENAMED.items()}
    named = {ours: lookup(names, said[key], key) for key, (ours, names) in MAPPED.items()}
    unnormed = said["attn_norm_num_groups"] is None and named["modulation"] != "shift"
    net = UNet(
        image_size=_size(image_size if said["sample_size"] is None else said["sample_size"]),
        learned_variance=out == 2 * channels,
        num_classes=said["num_class_embeds"] if named["labels_are"] == "classes" else None,
        widths=tuple(said["block_out_channels"]),
        attention=tuple(attention for attention, _ in down),
        up_attention=tuple(attention for attention, _ in up),
        down_kinds=tuple(kind for _, kind in down),
        up_kinds=tuple(kind for _, kind in up),
        init_scheme="torch",
        middle=lookup(
            MIDDLES,
            (said["mid_block_type"], said["add_attention"]),
            "mid_block_type and add_attention",
        ),
        middle_groups=0 if unnormed else said["attn_norm_num_groups"],
        timesteps=said["num_train_timesteps"] if named["time_embedding"] == "learned" else None,
        **same,
        **named,
    )
    _check_possible(net)
    return net


def _check_sizes(said: Mapping[str, Any]) -> None:
    for key, most in LARGEST.items():
        values = said[key] if isinstance(said[key], list) else [said[key]]
        fit = all(
            value is None or (isinstance(value, int) and 1 <= value <= most) for value in values
        )
        check(fit, f"config.json: {key} {str(said[key])[:80]} is not within 1 to {most}")
    for key in (key for key, default in DEFAULTS.items() if isinstance(default, float)):
        check(
            abs(said[key]) <= MAX_NUMBER,
            f"config.json: {key} {str(said[key])[:80]} is not within -{MAX_NUMBER} to {MAX_NUMBER}",
        )
    levels = len(said["block_out_channels"])
    check(
        levels <= MAX_LEVELS,
        f"config.json: a net of {levels} levels is not within 1 to {MAX_LEVELS}",
    )


def _block(name: str, way: str, resample_type: str | None) -> tuple[bool, Any]:
    levels = {pattern.format(way): level for pattern, level in BLOCKS.items()}
    attention, kind = lookup(
        levels, str(name).removeprefix("UNetRes"), f"{way.lower()}_block_types"
    )
    sampler = f"{way.lower()}sample_type"
    return attention, kind or lookup(
        {None: "conv", "conv": "conv", "resnet": "resnet"}, resample_type, sampler
    )


def _size(size: Any) -> int:
    check(size is not None, "config.json names no sample_size: say which image_size to use")
    sizes = set(size) if isinstance(size, (list, tuple)) else {size}
    check(
        len(sizes) == 1,
        f"sample_size {str(size)[:80]} is not square: only square pictures are supported",
    )
    return sizes.pop()


def unet_to_config(net: UNet) -> dict[str, Any]:
    """The config.json of a net; raises ValueError for one that UNet2DModel cannot be."""
    _check_possible(net)
    unsaid = net.modulation == "scale_shift" and net.middle_groups is None
    labelled = net.labels_are == "classes" and net.num_classes is not None
    return {
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "sample_size": net.image_size,
        "out_channels": net.out_channels,
        "down_block_types": [
            _block_name(attention, kind, "Down") for _, attention, kind in net.down_levels
        ],
        "mid_block_type": None if net.middle == "none" else CLASS_OF_MIDDLE,
        "up_block_types": [
            _block_name(attention, kind, "Up") for _, attention, kind in reversed(net.up_levels)
        ],
        "block_out_channels": list(net.widths),
        "downsample_type": next(iter(_kinds(net.down_levels[:-1])), "conv"),
        "upsample_type": next(iter(_kinds(net.up_levels[1:])), "conv"),
        "attn_norm_num_groups": net.groups_of(net.widths[-1])
        if unsaid
        else net.middle_groups or None,
        "add_attention": net.middle == "attention",
        "num_class_embeds": net.label_count if labelled else None,
        "num_train_timesteps": net.timesteps,
        **{key: getattr(net, ours) for key, ours in RENAMED.items()},
        **{key: _inverse(names, getattr(net, ours)) for key, (ours, names) in MAPPED.items()},
    }


def _check_possible(net: UNet) -> None:
    """Raises ValueError for a net that UNet2DModel cannot be."""
    ways = {
        "down": (net.down_levels[:-1], net.channels),
        "up": (net.up_levels[1:], net.out_channels),
    }
    for way, (levels, channels) in ways.items():
        found = sorted(_kinds(levels))
        check(
            len(found) < 2,
            f"a {CLASS} has one way to go {way} from levels with attention, not {found}",
        )
        fits = channels == 3 or all(kind != "skip" for _, _, kind in levels)
        check(
            fits,
            f"the skip levels of a {CLASS} have pictures of 3 channels on the way {way}, not {channels}",
        )
    grouped = net.groups is not None or all(
        kind == "skip" for _, _, kind in net.down_levels + net.up_levels
    )
    check(
        grouped,
        f"a {CLASS} needs groups for its norms (norm_num_groups) unless all its levels are skip",
    )
    scaled = net.modulation == "scale_shift"
    check(
        net.middle_groups != 0 or scaled,
        f"the middle attention of a {CLASS} has no norm with scale_shift alone",
    )


def _kinds(levels: list) -> set[str]:
    """The ways to go over to the next level that a type of block leaves open."""
    return {kind for _, attention, kind in levels if attention and kind != "skip"}


def _inverse(names: Mapping, value: Any) -> Any:
    return next(key for key, ours in names.items() if ours == value)


def _block_name(attention: bool, kind: str, way: str) -> str:
    for pattern, (has_attention, its_kind) in BLOCKS.items():
        if has_attention == attention and (
            its_kind == kind or (its_kind is None and kind != "skip")
        ):
            return pattern.format(way)
    raise AssertionError(f"no block for {kind}")
