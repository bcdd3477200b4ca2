"""Convert the config.json of transformers' CLIPTextModel to our `ClipText`, and back."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax.models.clip_text import ACTIVATIONS, ClipText
from ddpm_jax.pretrained.json_settings import check_fixed, check_limits, lookup, validate

CLASS = "CLIPTextModel"
MODEL_TYPE = "clip_text_model"
SETTINGS: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The values that transformers gives to missing keys."""
FIXED: dict[str, Any] = {"model_type": MODEL_TYPE, "use_attention_mask": False}
DEFAULTS = SETTINGS | FIXED
REASONS = {"use_attention_mask": "padding of texts is always visible to the text encoder here"}
IGNORED = set(
    "architectures attention_dropout bos_token_id chunk_size_feed_forward dropout dtype "
    "eos_token_id id2label initializer_factor initializer_range is_encoder_decoder label2id "
    "output_attentions output_hidden_states pad_token_id problem_type projection_dim return_dict "
    "torch_dtype transformers_version use_cache".split()
)
"""Keys that do not change the states of a text."""
LARGEST = {
    "vocab_size": 2**20,
    "hidden_size": 2**14,
    "intermediate_size": 2**16,
    "num_hidden_layers": 2**8,
    "num_attention_heads": 2**10,
    "max_position_embeddings": 2**14,
}
RENAMED = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "hidden_width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "max_position_embeddings": "max_length",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
}
"""{key: our setting of the same value}."""


def clip_text_from_config(config: Mapping[str, Any], filename: str = "config.json") -> ClipText:
    """The text encoder that a config.json describes. Raise ValueError for an unsupported config."""
    settings = validate(config, DEFAULTS, IGNORED, filename)
    check_fixed(settings, FIXED, REASONS, filename)
    check_limits(settings, DEFAULTS, LARGEST, filename)
    lookup({name: name for name in ACTIVATIONS}, settings["hidden_act"], "hidden_act")
    return ClipText(init_scheme="torch", **{ours: settings[key] for key, ours in RENAMED.items()})


def clip_text_to_config(net: ClipText) -> dict[str, Any]:
    """The config.json of a text encoder. The last two tokens are those of start and end."""
    return {
        "architectures": [CLASS],
        "model_type": MODEL_TYPE,
        "bos_token_id": net.vocab_size - 2,
        "eos_token_id": net.vocab_size - 1,
        "projection_dim": net.width,
        **{key: getattr(net, ours) for key, ours in RENAMED.items()},
    }
