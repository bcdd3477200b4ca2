"""The networks of Stable Diffusion in folders: each has a config.json and the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.models import Network, Params
from ddpm_jax.pretrained import autoencoder_config, clip_text_config, conditional_unet_config
from ddpm_jax.pretrained.unet_folder import CONFIG
from ddpm_jax.pretrained.untrusted_files import inside, read_json, write_json
from ddpm_jax.pretrained.weight_files import (
    DIFFUSERS,
    TRANSFORMERS,
    FileNames,
    check_no_other_weights,
    read_tensors,
    write_tensors,
)
from ddpm_jax.pretrained.weight_names import from_state_dict, to_state_dict


class PartFormat(NamedTuple):
    """How a network is kept in a folder."""

    library: str
    class_name: str
    """The library and the class in model_index.json."""
    from_config: Callable[..., Any]
    to_config: Callable[[Any], dict[str, Any]]
    files: FileNames


PARTS = {
    "unet": PartFormat(
        "diffusers",
        conditional_unet_config.CLASS,
        conditional_unet_config.conditional_unet_from_config,
        conditional_unet_config.conditional_unet_to_config,
        DIFFUSERS,
    ),
    "vae": PartFormat(
        "diffusers",
        autoencoder_config.CLASS,
        autoencoder_config.autoencoder_from_config,
        autoencoder_config.autoencoder_to_config,
        DIFFUSERS,
    ),
    "text_encoder": PartFormat(
        "transformers",
        clip_text_config.CLASS,
        clip_text_config.clip_text_from_config,
        clip_text_config.clip_text_to_config,
        TRANSFORMERS,
    ),
}
"""{name of a part in model_index.json: its format}."""


def read_part(folder: Path, part: str) -> Any:
    """Read a network without its parameters. Raise FileNotFoundError or ValueError."""
    config = read_json(inside(folder, folder / CONFIG))
    return PARTS[part].from_config(config, f"{part}/{CONFIG}")


def read_part_params(folder: Path, part: str, net: Network, variant: str | None = None) -> Params:
    """Read the float32 parameters of a network. Raise FileNotFoundError or ValueError.

    `variant` names the weights, such as "fp16".
    """
    return from_state_dict(net, read_tensors(folder, variant, PARTS[part].files))


def save_part(folder: Path, part: str, net: Network, params: Params) -> None:
    """Write a folder for `from_pretrained` of the part's class.

    Raise ValueError if the folder holds other weights.
    """
    form = PARTS[part]
    tensors = to_state_dict(net, params)
    folder.mkdir(parents=True, exist_ok=True)
    check_no_other_weights(folder, form.files)
    write_json(folder / CONFIG, form.to_config(net))
    write_tensors(folder, tensors, form.files)
