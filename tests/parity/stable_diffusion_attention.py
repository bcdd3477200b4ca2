"""Attention maps: the section `attention` of stable_diffusion.py.

Small random U-Nets of diffusers run with an attention processor that keeps the probabilities of the
layers that DAAM takes, and aggregates them as DAAM does. Each line shows the largest difference of
our maps (1e-5 is the bound), relative to the largest one: of words by cross-attention with and
without the middle, of kept heads and layers, and of pixels by self-attention. Batches of two,
latents that are not square, and levels with different numbers of heads are among them.
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import shared
import torch
from stable_diffusion_models import random_sample, to_torch

sys.path.insert(1, str(Path(__file__).parents[1]))
import ddpm_jax as dj
from ddpm_jax.diffusion.schedule import from_betas, scaled_linear_betas
from ddpm_jax.pretrained.part_folder import read_part, read_part_params

BOUND = 1e-5
STEPS = 5
PIXELS = [(0, 0), (3, 5)]
UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
CASES = [
    ("square", {"attention_head_dim": 4}, (8, 8)),
    ("2 and 4 heads", {"attention_head_dim": [2, 4]}, (8, 14)),
    ("odd, 2 blocks", {"attention_head_dim": 2, "transformer_layers_per_block": 2}, (9, 7)),
]


class Recorder:
    """An attention processor of diffusers that adds up the probabilities of one layer."""

    def __init__(self):
        self.total = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        k = attn.head_to_batch_dim(attn.to_k(context))
        v = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(q, k)  # (b * heads, n, m)
        self.total = self.total + probabilities.unflatten(0, (-1, attn.heads))
        return attn.to_out[0](attn.batch_to_head_dim(probabilities @ v))


def recorded(unet, states, t, text):
    """The sums (b, heads, n, m) of each attention layer over the steps, by name."""
    recorders = {name: Recorder() for name in unet.attn_processors}
    unet.set_attn_processor(dict(recorders))
    for xt, step in zip(states, t, strict=True):
        unet(to_torch(np.asarray(xt), torch.float32), torch.tensor(float(step)), torch.tensor(text))
    return {name.removesuffix(".processor"): kept.total for name, kept in recorders.items()}


def enlarged(total, size, pixels=None):
    """DAAM's maps (b, heads, h, w, n) of one layer: resized by PyTorch, and clamped."""
    layer = size
    while layer[0] * layer[1] > total.shape[2]:
        layer = [-(-length // 2) for length in layer]
    maps = total.transpose(-1, -2)  # (b, heads, tokens, n)
    if pixels is not None:
        scaled = [
            [i * new // old for i, new, old in zip(p, layer, size, strict=True)] for p in pixels
        ]
        maps = total[:, :, [row * layer[1] + column for row, column in scaled]]
    maps = maps.unflatten(-1, tuple(layer)).flatten(0, 1)
    maps = torch.nn.functional.interpolate(maps, size=size, mode="bicubic").clamp(min=0)
    return maps.unflatten(0, total.shape[:2]).permute(0, 1, 3, 4, 2).numpy()


def average(layers):
    """The mean over all heads of all layers."""
    return np.concatenate(list(layers.values()), 1).mean(1)


def difference(ours, theirs):
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(theirs))


def differences(config, size, seed, folder):
    """The largest difference of each kind of maps."""
    sample = random_sample("unet", {**UNET, **config}, seed, size)
    sample.model.save_pretrained(folder)
    net = read_part(folder, "unet")
    params = read_part_params(folder, "unet", net)
    rng = np.random.default_rng(seed)
    states = jnp.asarray(rng.standard_normal((STEPS, 2, *size, 4), np.float32))
    schedule = from_betas(scaled_linear_betas(1000, 0.00085, 0.012))
    grid = dj.make_grid(schedule, dj.spaced(1000, STEPS))
    text = sample.inputs[2]
    totals = recorded(sample.model, states, grid.t, text)
    arguments = (net, params, states, grid, dj.TextCondition(jnp.asarray(text)))
    crossed = {name: enlarged(x, size) for name, x in totals.items() if name.endswith("attn2")}
    outside = {name: x for name, x in crossed.items() if not name.startswith("mid")}
    looks = {
        name: enlarged(x, size, PIXELS)
        for name, x in totals.items()
        if name.endswith("attn1") and not name.startswith("mid")
    }
    kept = dj.attention_maps(*arguments, middle=True, keep_layers=True, keep_heads=True)
    assert kept.keys() == crossed.keys()
    return (
        difference(dj.attention_maps(*arguments), average(outside)),
        difference(dj.attention_maps(*arguments, middle=True), average(crossed)),
        np.max([difference(kept[name], crossed[name]) for name in kept]),
        difference(dj.attention_maps(*arguments, pixels=PIXELS), average(looks)),
    )


def compare() -> tuple[list[shared.Figure], int]:
    """Print all lines. Return the differences as figures; nothing else can be wrong."""
    figures = []
    print(f"{'':18}{'words':>10}{'middle':>10}{'kept':>10}{'pixels':>10}")
    with jax.default_matmul_precision("highest"), tempfile.TemporaryDirectory() as folder:
        for seed, (name, config, size) in enumerate(CASES):
            found = differences(config, size, seed, Path(folder))
            figure = shared.Figure(f"attention maps, {name},", float(np.max(found)), BOUND)
            shown = "".join(f"{value:10.1e}" for value in found)
            print(f"{name:18}{shown}{'  OVER' if figure.over else ''}", flush=True)
            figures.append(figure)
    return figures, 0
