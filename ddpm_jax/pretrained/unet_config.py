"""The config.json of diffusers' UNet2DModel and our `UNet`, each from the other."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import check
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.settings import known, settings_of

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

NULLABLE = {"mid_block_type", "downsample_type", "upsample_type", "attention_head_dim", "norm_num_groups"}
"""Keys that may be null beside those whose default is null."""

LARGEST = {"layers_per_block": 64, "block_out_channels": 2**14, "sample_size": 2**14, "num_train_timesteps": 2**20}
"""What no net reaches; beyond it drawing up the net alone would take memory or time without end."""
MOST_LEVELS = 16

OF_AVERAGES = {"decay", "inv_gamma", "power", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"}
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
TIME_EMBEDDINGS = {"positional": "sinusoidal", "fourier": "fourier", "learned": "learned"}
MODULATIONS = {"default": "shift", "scale_shift": "scale_shift"}
MIDDLES = {(None, True): "none", (None, False): "none", (CLASS_OF_MIDDLE := "UNetMidBlock2D", True): "attention"}
MIDDLES[CLASS_OF_MIDDLE, False] = "plain"
LABELS = {None: "classes", "timestep": "numbers", "identity": "vectors"}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "mish": "mish"}


def unet_of(config: Mapping[str, Any], image_size: int | None = None) -> UNet:
    """The net that a config.json describes; raises ValueError for what is not understood.

    `image_size` is for configs that name none; the parameters do not depend on it.
    """
    check(config.get("_class_name", CLASS) == CLASS, f"this is a {config.get('_class_name')}, not a {CLASS}")
    said = settings_of(config, DEFAULTS, OF_AVERAGES, "config.json", NULLABLE)
    _check_sizes(said)
    channels, out = said["in_channels"], said["out_channels"]
    check(out in (channels, 2 * channels), f"out_channels {out} is neither in_channels {channels} nor twice that")
    down = [_block(name, "Down", said["downsample_type"]) for name in said["down_block_types"]]
    up = [_block(name, "Up", said["upsample_type"]) for name in reversed(said["up_block_types"])]
    labels = known(LABELS, said["class_embed_type"], "class_embed_type")
    modulation = known(MODULATIONS, said["resnet_time_scale_shift"], "resnet_time_scale_shift")
    unnormed = said["attn_norm_num_groups"] is None and modulation != "shift"
    learned = said["time_embedding_type"] == "learned"
    return UNet(
        image_size=_size(image_size if said["sample_size"] is None else said["sample_size"]),
        channels=channels,
        learned_variance=out == 2 * channels,
        num_classes=said["num_class_embeds"] if labels == "classes" else None,
        widths=tuple(said["block_out_channels"]),
        attention=tuple(attention for attention, _ in down),
        up_attention=tuple(attention for attention, _ in up),
        down_kinds=tuple(kind for _, kind in down),
        up_kinds=tuple(kind for _, kind in up),
        layers_per_level=said["layers_per_block"],
        head_dim=said["attention_head_dim"],
        dropout=float(said["dropout"]),
        groups=said["norm_num_groups"],
        norm_eps=float(said["norm_eps"]),
        flip_sin_to_cos=said["flip_sin_to_cos"],
        freq_shift=float(said["freq_shift"]),
        symmetric_padding=known({0: False, 1: True}, said["downsample_padding"], "downsample_padding"),
        init_scheme="torch",
        middle=known(MIDDLES, (said["mid_block_type"], said["add_attention"]), "mid_block_type and add_attention"),
        middle_scale=float(said["mid_block_scale_factor"]),
        middle_groups=0 if unnormed else said["attn_norm_num_groups"],
        activation=known(ACTIVATIONS, str(said["act_fn"]).lower(), "act_fn"),
        modulation=modulation,
        time_embedding=known(TIME_EMBEDDINGS, said["time_embedding_type"], "time_embedding_type"),
        time_embedding_dim=said["time_embedding_dim"],
        timesteps=said["num_train_timesteps"] if learned else None,
        labels_are=labels,
        center_input=said["center_input_sample"],
    )


def _check_sizes(said: Mapping[str, Any]) -> None:
    for key, most in LARGEST.items():
        values = said[key] if isinstance(said[key], list) else [said[key]]
        fit = all(value is None or (isinstance(value, int) and 1 <= value <= most) for value in values)
        check(fit, f"config.json: {key} {str(said[key])[:80]} is not within 1 to {most}")
    levels = len(said["block_out_channels"])
    check(levels <= MOST_LEVELS, f"config.json: a net of {levels} levels is not within 1 to {MOST_LEVELS}")


def _block(name: str, way: str, resample_type: str | None) -> tuple[bool, Any]:
    levels = {pattern.format(way): level for pattern, level in BLOCKS.items()}
    attention, kind = known(levels, str(name).removeprefix("UNetRes"), f"{way.lower()}_block_types")
    sampler = f"{way.lower()}sample_type"
    return attention, kind or known({None: "conv", "conv": "conv", "resnet": "resnet"}, resample_type, sampler)


def _size(size: Any) -> int:
    check(size is not None, "config.json names no sample_size: say which image_size to use")
    sizes = set(size) if isinstance(size, (list, tuple)) else {size}
    check(len(sizes) == 1, f"sample_size {size} is not square: only square pictures are supported")
    return sizes.pop()


def config_of(net: UNet) -> dict[str, Any]:
    """The config.json of a net; raises ValueError for one that UNet2DModel cannot be."""
    kinds = {way: {kind for _, attention, kind in levels if attention and kind != "skip"} for way, levels in _ways(net)}
    for way, found in kinds.items():
        check(len(found) < 2, f"a {CLASS} has one way to go {way} from levels with attention, not {sorted(found)}")
    scaled = net.modulation == "scale_shift"
    check(net.middle_groups != 0 or scaled, f"the middle attention of a {CLASS} has no norm with scale_shift alone")
    middle_groups = net.groups_of(net.widths[-1]) if scaled and net.middle_groups is None else net.middle_groups
    labelled = net.labels_are == "classes" and net.num_classes is not None
    return {
        "_class_name": CLASS,
        "_diffusers_version": "0.35.0",
        "sample_size": net.image_size,
        "in_channels": net.channels,
        "out_channels": net.out_channels,
        "center_input_sample": net.center_input,
        "time_embedding_type": _inverse(TIME_EMBEDDINGS, net.time_embedding),
        "time_embedding_dim": net.time_embedding_dim,
        "freq_shift": net.freq_shift,
        "flip_sin_to_cos": net.flip_sin_to_cos,
        "down_block_types": [_block_name(attention, kind, "Down") for _, attention, kind in net.down_levels],
        "mid_block_type": None if net.middle == "none" else CLASS_OF_MIDDLE,
        "up_block_types": [_block_name(attention, kind, "Up") for _, attention, kind in reversed(net.up_levels)],
        "block_out_channels": list(net.widths),
        "layers_per_block": net.layers_per_level,
        "mid_block_scale_factor": net.middle_scale,
        "downsample_padding": int(net.symmetric_padding),
        "downsample_type": next(iter(kinds["down"]), "conv"),
        "upsample_type": next(iter(kinds["up"]), "conv"),
        "dropout": net.dropout,
        "act_fn": net.activation,
        "attention_head_dim": net.head_dim,
        "norm_num_groups": net.groups,
        "attn_norm_num_groups": middle_groups or None,
        "norm_eps": net.norm_eps,
        "resnet_time_scale_shift": _inverse(MODULATIONS, net.modulation),
        "add_attention": net.middle == "attention",
        "class_embed_type": _inverse(LABELS, net.labels_are),
        "num_class_embeds": net.label_count if labelled else None,
        "num_train_timesteps": net.timesteps,
    }


def _ways(net: UNet) -> list[tuple[str, list]]:
    return [("down", net.down_levels[:-1]), ("up", net.up_levels[1:])]


def _inverse(names: Mapping, value: Any) -> Any:
    return next(key for key, ours in names.items() if ours == value)


def _block_name(attention: bool, kind: str, way: str) -> str:
    for pattern, (has_attention, its_kind) in BLOCKS.items():
        if has_attention == attention and (its_kind == kind or (its_kind is None and kind != "skip")):
            return pattern.format(way)
    raise AssertionError(f"no block for {kind}")
