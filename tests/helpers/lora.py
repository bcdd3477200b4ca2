"""The five dialects of LoRA files, and random LoRAs in PyTorch's layout."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
Pairs = dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
"""{(part, module): (A, B)} in PyTorch's layout."""


def random_pair(module: str, shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a layer whose weight has this shape, (o, i) or (o, i, h, w)."""
    rng = np.random.default_rng(zlib.crc32(module.encode()))
    down = rng.standard_normal((rank, *shape[1:]), np.float32)
    up = rng.standard_normal((shape[0], rank, *[1 for _ in shape[2:]]), np.float32)
    return down / rank, up / 4


def changes(pairs: Pairs, scale: float = 1.0) -> dict[tuple[str, str], np.ndarray]:
    """The change of each weight in PyTorch's layout, in float64."""
    return {
        key: scale * np.einsum("or,r...->o...", b.reshape(len(b), -1).astype(np.float64), a)
        for key, (a, b) in pairs.items()
    }


def spell(dialect: str, pairs: Pairs, alpha: float | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file in a dialect, with a tensor alpha per layer if one is given."""
    tensors = {}
    for (part, module), (a, b) in pairs.items():
        stem, down, up = _names(dialect, part, module)
        tensors[f"{stem}{down}.weight"] = a
        tensors[f"{stem}{up}.weight"] = b
        if alpha is not None:
            # An integer alpha is an integer tensor, as kohya's script writes it.
            tensors[f"{stem}.alpha"] = np.asarray(
                alpha, np.int64 if isinstance(alpha, int) else np.float32
            )
    return tensors


def _names(dialect: str, part: str, module: str) -> tuple[str, str, str]:
    name = f"{part}.{module}"
    if dialect == "peft":
        return name, ".lora_A", ".lora_B"
    if dialect == "diffusers":
        layer = ".lora" if part == "unet" else ".lora_linear_layer"
        return name, f"{layer}.down", f"{layer}.up"
    if dialect == "old diffusers":
        parent, _, last = name.removesuffix(".0").rpartition(".")
        processor = ".processor" if part == "unet" else ""
        return f"{parent}{processor}.{ATTENTION.get(last, last)}", "_lora.down", "_lora.up"
    if dialect == "kohya":
        stem = f"{PREFIXES[part]}_{module.replace('.', '_')}"
        return stem, ".lora_down", ".lora_up"
    assert dialect == "bare"
    return module, ".lora_A", ".lora_B"


DIALECTS = ("peft", "diffusers", "old diffusers", "kohya", "bare")


def write(path: Path, tensors: Mapping[str, np.ndarray], **metadata: Any) -> Path:
    """Write a safetensors file."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt", **metadata})
    return path
