"""Nets in the diffusers layout: a folder with config.json and the weights."""

from pathlib import Path

from ddpm_jax.errors import check
from ddpm_jax.models import Params
from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.unet_config import unet_from_config, unet_to_config
from ddpm_jax.pretrained.untrusted_files import inside, read_json, write_json
from ddpm_jax.pretrained.weight_files import NAME, read_tensors, write_tensors
from ddpm_jax.pretrained.weight_names import from_state_dict, to_state_dict

CONFIG = "config.json"


def load_net(
    folder: Path, variant: str | None = None, image_size: int | None = None
) -> tuple[UNet, Params]:
    """The net and its float32 parameters; raises FileNotFoundError or ValueError.

    `variant` is such as fp16; `image_size` is for nets whose config names no sample_size.
    """
    net = read_net(folder, image_size)
    return net, read_params(folder, net, variant)


def read_net(folder: Path, image_size: int | None = None) -> UNet:
    """The net alone, as `load_net`; no device is touched."""
    return unet_from_config(read_json(inside(folder, folder / CONFIG)), image_size)


def read_params(folder: Path, net: UNet, variant: str | None = None) -> Params:
    """The parameters of the net, as `load_net`."""
    return from_state_dict(net, read_tensors(folder, variant))


def save_net(net: UNet, params: Params, folder: Path) -> None:
    """Writes the net as UNet2DModel.from_pretrained of diffusers opens it; raises ValueError for one it cannot be."""
    config, tensors = unet_to_config(net), to_state_dict(net, params)
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted({path.name for path in folder.glob(f"{NAME}*")} - {f"{NAME}.safetensors"})
    check(
        not others,
        f"{folder} holds other weights ({', '.join(others[:2])}): save to another folder",
    )
    write_json(folder / CONFIG, config)
    write_tensors(folder, tensors)
