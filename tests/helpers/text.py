"""A small tokenizer's files, in both forms, and a small Stable Diffusion."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from helpers.stable_diffusion import lazy, weights
from tokenizers import pre_tokenizers

from ddpm_jax.models import Network, Params
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet_conditional import ConditionalUNet
from ddpm_jax.pretrained.latent_scheduler import parse_latent_scheduler
from ddpm_jax.pretrained.stable_diffusion import StableDiffusion
from ddpm_jax.pretrained.weight_names import from_state_dict, to_state_dict

MERGES = ["h e", "r e</w>", "a r", "he ar", "hear t</w>", "r ed</w>", "e d</w>"]
START = 519
END = 520


def vocabulary() -> dict[str, int]:
    """256 bytes, 256 bytes that end a word, 7 merges and 2 special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged]
    return {token: id for id, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def tokenizer_files(pad: str = "<|endoftext|>", whole: bool = False) -> dict[str, bytes]:
    """The files of hub repositories or, with `whole`, those that transformers 5 writes."""

    def special(content: str) -> dict:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"content": content, **flags}

    names = {
        "bos_token": special("<|startoftext|>"),
        "eos_token": special("<|endoftext|>"),
        "unk_token": special("<|endoftext|>"),
        "pad_token": pad,
    }
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    if whole:
        added = [names["bos_token"], names["eos_token"], special(pad) | {"normalized": False}]
        merges = [merge.split() for merge in MERGES]
        model = {"type": "BPE", "vocab": vocabulary(), "merges": merges}
        # Only the vocabulary, the merges and the added tokens may matter.
        other = {"truncation": {"max_length": 3}, "padding": {"pad_id": 7}, "normalizer": None}
        contents = {name: token["content"] for name, token in names.items() if name != "pad_token"}
        return {
            "tokenizer.json": json.dumps({"added_tokens": added, "model": model, **other}).encode(),
            "tokenizer_config.json": json.dumps({**config, **contents, "pad_token": pad}).encode(),
        }
    return {
        "vocab.json": json.dumps(vocabulary()).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *MERGES, ""]).encode(),
        "special_tokens_map.json": json.dumps(names).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


HUB_SCHEDULER: dict = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""The scheduler_config.json of CompVis/stable-diffusion-v1-4."""
SAVED_SCHEDULER = HUB_SCHEDULER | {"timestep_spacing": "leading", "prediction_type": "epsilon"}
"""The same after diffusers saved it again, which makes every key explicit."""


@functools.cache
def tiny_model(inpaints: bool = False) -> StableDiffusion:
    """A Stable Diffusion of three small networks with random parameters. Images have 8 pixels."""
    text_encoder = ClipText(vocab_size=521, width=8, hidden_width=16, layers=2, heads=2)
    unet = ConditionalUNet(
        sample_size=4,
        in_channels=9 if inpaints else 4,
        widths=(8, 8),
        cross_attention=(True, False),
        heads=(2, 2),
        transformer_layers=(1, 1),
        layers_per_level=1,
        context_dim=8,
        groups=2,
        init_scheme="torch",
    )
    autoencoder = Autoencoder(sample_size=8, widths=(4, 4), layers_per_level=1, groups=2)
    # Of the schedulers, DDIM has the smallest program.
    scheduler = parse_latent_scheduler(HUB_SCHEDULER, "DDIMScheduler")
    return StableDiffusion(
        tokenizer_files=tokenizer_files(),
        text_encoder=text_encoder,
        text_params=_params(text_encoder),
        unet=unet,
        unet_params=_params(unet),
        autoencoder=autoencoder,
        autoencoder_params=_params(autoencoder),
        objective=scheduler.objective,
        sampling=dataclasses.replace(scheduler.sampling, steps=3),
        scheduler=HUB_SCHEDULER | {"_class_name": "DDIMScheduler"},
    )


@functools.cache
def smallest_model() -> StableDiffusion:
    """`tiny_model` with one level in its U-Net, which compiles faster.

    The target is that of Stable Diffusion 2.
    """
    model = tiny_model()
    unet = dataclasses.replace(
        model.unet,
        widths=(8,),
        cross_attention=(True,),
        heads=(2,),
        transformer_layers=(1,),
        groups=4,
    )
    return model._replace(
        unet=unet,
        unet_params=_params(unet),
        objective=dataclasses.replace(model.objective, target="v"),
        scheduler=model.scheduler | {"prediction_type": "v_prediction"},
    )


def _params(net: Network) -> Params:
    """Random parameters, the same under every version of JAX."""
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), net.shapes())
    tensors = to_state_dict(net, empty)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return from_state_dict(net, lazy(weights(shapes)))


IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
MASK = np.zeros((8, 8), np.uint8)
MASK[2:6, 4:] = 255


class Recorded(NamedTuple):
    """A call of diffusers on `tiny_model`, whose images are in the fixture."""

    task: Literal["text", "image", "inpaint"]
    inpaints: bool = False
    strength: float | None = None
    guidance_rescale: float = 0.0


RECORDED = {
    "text": Recorded("text", guidance_rescale=0.7),
    "image": Recorded("image", strength=0.7),
    "inpaint": Recorded("inpaint"),
    "inpaint-strength": Recorded("inpaint", strength=0.7),
    "inpaint-9-channels": Recorded("inpaint", inpaints=True),
    "inpaint-9-channels-strength": Recorded("inpaint", inpaints=True, strength=0.7),
}
RECORDED_CALL = {"prompt": "A red heart", "negative_prompt": "blurry!", "seed": 1145, "steps": 3}
FIXTURE = Path(__file__).parents[1] / "fixtures" / "stable_diffusion_pipelines.npz"
