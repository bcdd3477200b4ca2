"""Random networks of diffusers and transformers, with inputs and outputs.

Arrays outside of PyTorch are NumPy's, images and latents NHWC.
"""

import copy
from typing import NamedTuple

import diffusers
import numpy as np
import torch
import transformers

NORM_NOISE = 0.1
"""Standard deviation of what is added to norms and biases, or mistakes in them would not show."""
VOCABULARY = 1000
UNET_SIZES = ((8, 8), (9, 7), (14, 18), (17, 21))
IMAGE_SIZES = ((16, 16), (16, 24), (32, 8), (40, 24))
CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
}


class Sample(NamedTuple):
    """A network of diffusers or transformers, with inputs for it."""

    part: str
    model: torch.nn.Module
    inputs: tuple


def build(part, config):
    """A network of a config."""
    if part == "text_encoder":
        config = {"config": transformers.CLIPTextConfig(**config)}
    return CLASSES[part](**config).eval().requires_grad_(False)


def to_torch(images, dtype):
    """Images (b, c, h, w) for PyTorch."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


def to_numpy(images):
    """Images (b, h, w, c) of PyTorch."""
    return images.float().numpy().transpose(0, 2, 3, 1)


def theirs(sample, dtype=torch.float32):
    """The outputs of PyTorch, as those of `helpers.stable_diffusion.run`."""
    model = copy.deepcopy(sample.model).to(dtype)
    return OUTPUTS[sample.part](model, sample.inputs, dtype)


def unet_outputs(model, inputs, dtype):
    xt, t, states, *image = inputs
    xt = to_torch(np.concatenate([xt, *image], -1), dtype)
    return (to_numpy(model(xt, torch.tensor(t), torch.tensor(states).to(dtype)).sample),)


def autoencoder_outputs(model, inputs, dtype):
    images, latents = (to_torch(array, dtype) for array in inputs)
    moments = model.encode(images).latent_dist.parameters
    return to_numpy(moments), to_numpy(model.decode(latents).sample)


def clip_outputs(model, inputs, dtype):
    ids = torch.tensor(inputs[0]).long()
    states = model(ids, output_hidden_states=True)
    # clip_skip 1, as diffusers computes it.
    text_model = getattr(model, "text_model", model)
    skipped = text_model.final_layer_norm(states.hidden_states[-2])
    return states.last_hidden_state.float().numpy(), skipped.float().numpy()


OUTPUTS = {"unet": unet_outputs, "vae": autoencoder_outputs, "text_encoder": clip_outputs}


def chooser(rng):
    """A function that draws one of its arguments."""
    return lambda *values: values[rng.integers(len(values))]


def random_unet_config(rng):
    choose = chooser(rng)
    levels = int(rng.integers(2, 4))
    cross = [bool(rng.integers(2)) for _ in range(levels)]
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in cross]
    return {
        "sample_size": 8,
        "block_out_channels": [choose(32, 64) for _ in range(levels)],
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "in_channels": choose(4, 9),
        "layers_per_block": choose(1, 1, 2),
        "attention_head_dim": choose(4, 8, [choose(2, 4) for _ in range(levels)]),
        "transformer_layers_per_block": choose(1, [choose(1, 2) for _ in range(levels)]),
        "cross_attention_dim": choose(16, 32),
        "use_linear_projection": choose(False, True),
        "upcast_attention": choose(False, True),
        "norm_num_groups": choose(8, 16, 32),
        "norm_eps": choose(1e-5, 1e-6),
        "flip_sin_to_cos": choose(True, True, False),
        "freq_shift": choose(0, 0, 1),
    }


def random_autoencoder_config(rng):
    choose = chooser(rng)
    levels = int(rng.integers(1, 4))
    return {
        "sample_size": 32,
        "block_out_channels": [choose(32, 64) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": choose(1, 1, 2),
        "latent_channels": choose(3, 4),
        "norm_num_groups": choose(8, 16, 32),
        "scaling_factor": choose(0.18215, 0.13025),
    }


def random_clip_config(rng):
    choose = chooser(rng)
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": choose(32, 64),
        "intermediate_size": choose(48, 64, 128),
        "num_hidden_layers": choose(2, 3, 4),
        "num_attention_heads": choose(1, 2, 4),
        "max_position_embeddings": choose(16, 77),
        "hidden_act": choose("quick_gelu", "gelu"),
        "layer_norm_eps": choose(1e-5, 1e-5, 1e-6),
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": choose(2, VOCABULARY - 1),
        "pad_token_id": 1,
    }


RANDOM_CONFIGS = {
    "unet": random_unet_config,
    "vae": random_autoencoder_config,
    "text_encoder": random_clip_config,
}


def random_inputs(part, config, rng, size):
    """Inputs of a network, of this height and width."""
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    if part == "unet":
        t = np.float32([981, 78.612])
        states = normal(2, 7, config["cross_attention_dim"])
        extra = config.get("in_channels", 4) - 4
        image = (normal(2, *size, extra),) if extra else ()
        return normal(2, *size, 4), t, states, *image
    if part == "vae":
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        latent_size = [length // factor for length in size]
        return normal(2, *size, 3), normal(2, *latent_size, config.get("latent_channels", 4))
    length = int(rng.integers(2, config["max_position_embeddings"] + 1))
    return (rng.integers(0, VOCABULARY, (2, length)).astype(np.int32),)


def random_sample(part, config, seed, size=None):
    """A network of a config with random weights, noise on its norms and biases, and inputs."""
    torch.manual_seed(seed)
    model = build(part, config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += NORM_NOISE * torch.randn(parameter.shape)
    sizes = IMAGE_SIZES if part == "vae" else UNET_SIZES
    size = size or sizes[seed % len(sizes)]
    return Sample(part, model, random_inputs(part, config, np.random.default_rng(seed), size))
