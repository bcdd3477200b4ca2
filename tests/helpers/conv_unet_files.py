"""A small ConvBlock U-Net as a PyTorch project saves it, made without PyTorch."""

import numpy as np

from ddpm_jax.models.conv_unet import ConvUNet

MODEL = ConvUNet(image_size=32, channels=3, widths=(32, 64), time_embedding_dim=8)
FREQUENCIES = 10000.0 ** (-np.arange(4) / 4)
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
ORDER = {
    "time.1": "time_linear",
    "enc.0.seq1.0": "down_0/conv1",
    "enc.0.seq1.1": "down_0/norm1",
    "enc.0.emb": "down_0/time_emb_proj",
    "enc.0.seq2.0": "down_0/conv2",
    "enc.0.seq2.1": "down_0/norm2",
    "enc.0.res": "down_0/conv_shortcut",
    "enc.1.seq1.0": "down_1/conv1",
    "enc.1.seq1.1": "down_1/norm1",
    "enc.1.emb": "down_1/time_emb_proj",
    "enc.1.seq2.0": "down_1/conv2",
    "enc.1.seq2.1": "down_1/norm2",
    "enc.1.res": "down_1/conv_shortcut",
    "deconvs.0": "upsample_0",
    "dec.0.seq1.0": "up_0/conv1",
    "dec.0.seq1.1": "up_0/norm1",
    "dec.0.emb": "up_0/time_emb_proj",
    "dec.0.seq2.0": "up_0/conv2",
    "dec.0.seq2.1": "up_0/norm2",
    "dec.0.res": "up_0/conv_shortcut",
    "output": "conv_out",
}
"""The modules in the order in which the project registers them, under names of our own."""


def state_dict(params) -> dict[str, np.ndarray]:
    """The parameters as PyTorch lays them out, in the project's order."""
    tensors = {"time.0.half_emb": FREQUENCIES.astype(np.float32)}
    for name, path in ORDER.items():
        leaves = params
        for key in path.split("/"):
            leaves = leaves[key]
        weight = leaves["scale"] if "scale" in leaves else leaves["kernel"]
        if path == "upsample_0":
            weight = weight.transpose(0, 3, 1, 2)  # (in, 2, 2, out) -> (in, out, 2, 2)
        elif weight.ndim > 1:
            weight = weight.transpose(AXES[weight.ndim])
        tensors |= {f"{name}.weight": weight, f"{name}.bias": leaves["bias"]}
    return tensors
