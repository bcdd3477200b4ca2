"""Write tests/fixtures/unet2d_*.npz: small networks of diffusers, each with inputs and outputs.

    python tests/parity/fixture.py    # needs the extra `parity`

The weights are integer multiples of 2^-10, so that float16 holds them exactly.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from nets import DDPM, block_types, example, theirs

from ddpm_jax.pretrained.unet_config import unet_from_config

SMALL = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
}
NETS = {
    "ddpm": {**SMALL, **DDPM, **block_types([1], [0], 2)},
    "butterflies": {**SMALL, **block_types([0], [1], 2), "num_class_embeds": 7},
    "adm": {
        **SMALL,
        **block_types([0, 1], [0, 1], 2),
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "ncsnpp": {
        **SMALL,
        **block_types([], [], 2, "Skip"),
        "norm_num_groups": None,
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 2**0.5,
        "in_channels": 3,
        "out_channels": 3,
    },
}

for name, config in NETS.items():
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**config).eval()
    for parameter in model.parameters():
        shifted = parameter.data + 0.02 * torch.randn_like(parameter)
        parameter.data = torch.round(shifted.clamp(-1.99, 1.99) * 2**10) / 2**10
    model_config = json.loads(model.to_json_string())
    images, t, labels = example(unet_from_config(model_config), 8)
    images = np.round(images * 2**6) / 2**6
    arrays = {
        "config": json.dumps(model_config),
        "images": images,
        "t": t,
        "output": theirs(model, (images, t, labels)),
    }
    if labels is not None:
        arrays["labels"] = labels
    weights = {
        f"weights/{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
    }
    path = Path(__file__).parent.parent / "fixtures" / f"unet2d_{name}.npz"
    np.savez_compressed(path, **arrays, **weights)
    print(path, path.stat().st_size)
