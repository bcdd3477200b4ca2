"""Networks in the diffusers layout: a folder with config.json and the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.image_size import ImageSize
from ddpm_jax.models import Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.unet_config import unet_from_config, unet_to_config
from ddpm_jax.pretrained.untrusted_files import inside, read_json, write_json
from ddpm_jax.pretrained.weight_files import check_no_other_weights, read_tensors, write_tensors
from ddpm_jax.pretrained.weight_names import from_state_dict, to_state_dict

CONFIG = "config.json"


def load_net(
    folder: Path, variant: str | None = None, image_size: ImageSize | None = None
) -> tuple[UNet, Params]:
    """Read the network and its float32 parameters. Raise FileNotFoundError or ValueError.

    `variant` names the weights, such as "fp16". `image_size` is used if the config has no
    sample_size.
    """
    net = read_net(folder, image_size)
    return net, read_params(folder, net, variant)


def read_net(folder: Path, image_size: ImageSize | None = None) -> UNet:
    """Read the network without its parameters, as `load_net` does. Needs no device."""
    return unet_from_config(read_json(inside(folder, folder / CONFIG)), image_size)


def read_params(folder: Path, net: UNet, variant: str | None = None) -> Params:
    """Read the parameters of a network, as `load_net` does."""
    return from_state_dict(net, read_tensors(folder, variant))


def save_net(net: UNet, params: Params, folder: Path) -> None:
    """Write a folder for UNet2DModel.from_pretrained of diffusers.

    Raise ValueError if diffusers cannot represent the network, or if the folder holds other
    weights.
    """
    config = unet_to_config(net)
    tensors = to_state_dict(net, params)
    remove_config(folder)
    write_net(folder, config, tensors)


def write_net(folder: Path, config: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the files of a network. The config is the last one."""
    write_tensors(folder, tensors)
    write_json(folder / CONFIG, config)


def remove_config(folder: Path) -> None:
    """Make the folder of a network, or remove the config of the one that is there.

    Raise ValueError if the folder holds other weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_no_other_weights(folder)
    (folder / CONFIG).unlink(missing_ok=True)
