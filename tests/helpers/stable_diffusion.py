"""Small networks of diffusers and transformers: their weights by a recipe, their recorded outputs.

`python tests/parity/stable_diffusion_nets.py` writes the outputs of PyTorch to the fixture.
Images and latents are NHWC.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.pretrained.torch_pickle import LazyTensor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "stable_diffusion_nets.npz"
BOUNDS = {"unet": 3e-6, "vae": 5e-6, "text_encoder": 2e-6}
"""The largest differences in float32, relative to the largest output."""

CLIP = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "hidden_act": "quick_gelu",
    "bos_token_id": 48,
    "eos_token_id": 49,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (
        "unet",
        {
            "sample_size": 8,
            "in_channels": 9,
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "cross_attention_dim": 12,
            "norm_num_groups": 4,
        },
    ),
    "vae": (
        "vae",
        {
            "block_out_channels": [8, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 4,
        },
    ),
    "clip": ("text_encoder", CLIP),
    "open_clip": ("text_encoder", CLIP | {"hidden_act": "gelu"}),
}
"""{name: (part of Stable Diffusion, its config)}."""


class Recorded(NamedTuple):
    """A network of diffusers or transformers, with the outputs that PyTorch computed."""

    part: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """The shape of each tensor."""
    outputs: tuple[np.ndarray, ...]


def recorded(name: str) -> Recorded:
    """A network of the fixture."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        header = json.loads(str(file[f"{name}/header"]))
        keys = sorted(key for key in file.files if key.startswith(f"{name}/outputs/"))
        outputs = tuple(file[key] for key in keys)
    shapes = {key: tuple(shape) for key, shape in header["shapes"].items()}
    return Recorded(header["part"], header["config"], shapes, outputs)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by name. Norms and biases are random too, or mistakes in them would not show.

    Each is an exact multiple of 2^-10.
    """
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 1:
            tensor = name.endswith("weight") + 0.1 * rng.standard_normal(shape)
        else:
            tensor = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensors[name] = (np.round(tensor * 2**10) / 2**10).astype(np.float32)
    return tensors


def lazy(tensors: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    """Arrays as they would be read from a file."""
    return {name: LazyTensor(array.shape, array.copy) for name, array in tensors.items()}


def inputs(part: str) -> tuple[np.ndarray, ...]:
    """Inputs of the small networks, in the order that `run` takes."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    if part == "unet":
        return normal(2, 5, 7, 4), np.float32([981, 78.612]), normal(2, 3, 12), normal(2, 5, 7, 5)
    if part == "vae":
        return normal(2, 6, 10, 3), normal(2, 3, 5, 4)
    return (rng.integers(0, 50, (2, 9)).astype(np.int32),)


def run(net: Any, params: Any, inputs: tuple, dtype: Any = jnp.float32) -> tuple:
    """The outputs of a network, in one compiled program.

    U-Net: its output for (xt, t, states, image). Autoencoder: the moments of images and the images
    of latents. Text encoder: the states of ids, and those with one layer skipped.
    """

    @jax.jit
    def apply(params, *inputs):
        if isinstance(net, ConditionalUNet):
            xt, t, *condition = inputs
            return (net.apply(params, xt, t, TextCondition(*condition), dtype=dtype),)
        if isinstance(net, Autoencoder):
            images, latents = inputs
            moments = net.encode(params, images, dtype=dtype)
            return moments, net.decode(params, latents, dtype=dtype)
        return tuple(net.apply(params, *inputs, skip=skip, dtype=dtype) for skip in (0, 1))

    with jax.default_matmul_precision("highest"):
        return apply(params, *jax.tree.map(jnp.asarray, inputs))


def largest_difference(outputs: tuple, references: tuple) -> float:
    """The largest difference of any output, relative to the largest number of its reference."""
    differences = [
        np.max(np.abs(np.asarray(output) - reference)) / np.max(np.abs(reference))
        for output, reference in zip(outputs, references, strict=True)
    ]
    # Python's max would hide NaN.
    return float(np.max(differences))
