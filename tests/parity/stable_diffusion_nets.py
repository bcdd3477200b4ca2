"""The networks of Stable Diffusion: the section `nets` of stable_diffusion.py.

    python tests/parity/stable_diffusion_nets.py    # writes the fixture of the test suite

Networks of random configs and odd sizes, with random weights, are saved by diffusers or
transformers and loaded by us, then saved by us and loaded by them. Each line shows

float32   the largest difference of the outputs, relative to the largest output
bfloat16  the same of our bfloat16 outputs and of theirs, for every fourth network
back      whether they read the same tensors from our export, bit for bit, and we the same settings

The next lines show faults, each injected into one of our networks, and the difference that each
causes; then the numbers of parameters and tensors of Stable Diffusion's own networks; then the
memory that their compiled programs take besides arguments and results.

A line is wrong if a difference is over its bound (in float32 3e-6 for the U-Net, 5e-6 for the
autoencoder, 2e-6 for the text encoder; in bfloat16 2e-2, for the autoencoder 1.5 times theirs if
that is more), if anything that should be the same is not, if a fault stays within the bound, or if
a program takes more memory than stated.
"""

import shared  # before torch

# isort: split
import dataclasses
import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from stable_diffusion_models import CLASSES, RANDOM_CONFIGS, Sample, build, random_sample, theirs

sys.path.insert(1, str(Path(__file__).parents[1]))
from helpers.stable_diffusion import (
    BOUNDS,
    CONFIGS,
    FIXTURE,
    inputs,
    largest_difference,
    run,
    weights,
)

from ddpm_jax.models import attention, autoencoder, clip_text, norms, transformer, unet_conditional
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.layers import upsample_nearest
from ddpm_jax.models.unet_conditional import ConditionalUNet, TextCondition
from ddpm_jax.pretrained.part_folder import read_part, read_part_params, save_part

NUM_RANDOM_NETS = 20
BFLOAT16_BOUND = 2e-2
# PyTorch's own bfloat16 autoencoder differs from its float32 one by up to 2.9e-2.
BFLOAT16_RATIOS = {"vae": 1.5}
GIB = 2**30


def load(folder, part):
    """Our network and its parameters."""
    net = read_part(folder, part)
    return net, read_part_params(folder, part, net)


def exported_as_read(folder, sample, net, params):
    """Whether our export holds the same tensors and settings."""
    save_part(folder, sample.part, net, params)
    before = sample.model.state_dict()
    after = CLASSES[sample.part].from_pretrained(folder).state_dict()
    same = before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    return same and read_part(folder, sample.part) == net


def compare_bfloat16(sample, net, params, reference, name):
    """The figure of our bfloat16 outputs, and the difference of theirs."""
    ours = largest_difference(run(net, params, sample.inputs, jnp.bfloat16), reference)
    other = largest_difference(theirs(sample, torch.bfloat16), reference)
    bound = max(BFLOAT16_BOUND, BFLOAT16_RATIOS.get(sample.part, 0) * other)
    return shared.Figure(f"{name}, bfloat16,", ours, bound), other


def print_line(part, config, seed, folder):
    """Compare one network, there and back. Return its figures, and whether the way back differs."""
    sample = random_sample(part, config, seed)
    sample.model.save_pretrained(folder / "theirs")
    net, params = load(folder / "theirs", part)
    reference = theirs(sample)
    float32 = largest_difference(run(net, params, sample.inputs), reference)
    shown = " " * 16
    figures = [shared.Figure(f"{part} {seed}, float32,", float32, BOUNDS[part])]
    if seed % 4 == 0:
        figure, other = compare_bfloat16(sample, net, params, reference, f"{part} {seed}")
        figures.append(figure)
        shown = f"{figure.value:7.1e} {other:7.1e} "
    same = exported_as_read(folder / "ours", sample, net, params)
    size = "x".join(map(str, sample.inputs[0].shape[1:3]))
    counts = f"{size:>7}{net.parameter_count():>12,}"
    over = any(figure.over for figure in figures)
    marks = f"{'same' if same else 'DIFFERS'}  {'OVER' if over else ''}"
    print(f"{part + f' {seed}':16}{counts}  {float32:7.1e} {shown}  {marks}", flush=True)
    return figures, not same


def print_random(folder):
    """Compare networks of random configs. Return their figures, and how many else are wrong."""
    figures = []
    wrong = 0
    for part, random_config in RANDOM_CONFIGS.items():
        rng = np.random.default_rng(0)
        for seed in range(NUM_RANDOM_NETS):
            its_figures, differs = print_line(part, random_config(rng), seed, folder)
            figures += its_figures
            wrong += differs
        shared.print_progress(part)
    return figures, wrong


UNET = {
    "sample_size": 16,
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
# Even, then odd when it is halved.
FAULTY_SIZE = (14, 18)
HALVED_TWICE = (4, 5)
AUTOENCODER = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
}
CLIP = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}


def tanh_geglu(x):
    """GEGLU with the approximate gelu."""
    value, gate = jnp.split(x, 2, -1)
    return value * jax.nn.gelu(gate, approximate=True)


def swapped_geglu(x):
    """GEGLU with its halves swapped."""
    gate, value = jnp.split(x, 2, -1)
    return value * jax.nn.gelu(gate, approximate=False)


def strided_from(offset):
    """`conv` whose strided convolutions of even sizes keep other rows and columns."""
    plain = unet_conditional.conv

    def conv(x, *args, **options):
        if options.get("stride_offset") is not None and x.shape[1] % 2 == 0:
            options["stride_offset"] = offset
        return plain(x, *args, **options)

    return conv


def half_pixel_nearest(x):
    """Upsampling by jax.image.resize, which takes other pixels than PyTorch for an odd size."""
    b, h, w, c = x.shape
    if (h, w) != HALVED_TWICE:
        return upsample_nearest(x)
    odd = jax.image.resize(x, (b, 2 * h - 1, 2 * w - 1, c), "nearest")
    return jnp.pad(odd, ((0, 0), (0, 1), (0, 1), (0, 0)))


def without_final_norm(eps, name):
    """The text encoder's layer norms, of which the final one does nothing."""
    norm = norms.LayerNorm(eps, name=name)
    return (lambda x: x) if "final" in name else norm


def unmasked(*args, mask, **options):
    """Attention in which every token sees every other."""
    return attention.multi_head_attention(*args, **options)


def unet_faults(net):
    """{fault: (the network, what is replaced)}."""
    changed = lambda **settings: (dataclasses.replace(net, **settings), {})  # noqa: E731
    replaced = lambda module, name, value: (net, {(module, name): value})  # noqa: E731
    head_sizes = tuple(width // heads for width, heads in zip(net.widths, net.heads, strict=True))
    small_eps = partial(norms.LayerNorm, 1e-6)
    return {
        "layer norm eps 1e-6": replaced(transformer, "LayerNorm", small_eps),
        "transformer group norm eps 1e-5": replaced(transformer, "TRANSFORMER_NORM_EPS", 1e-5),
        "tanh gelu": replaced(transformer, "geglu", tanh_geglu),
        "every group norm eps 1e-6": changed(norm_eps=1e-6),
        "heads taken for head sizes": changed(heads=head_sizes),
        "no flip_sin_to_cos": changed(flip_sin_to_cos=False),
        "freq_shift 1": changed(freq_shift=1.0),
        "halves of GEGLU swapped": replaced(transformer, "geglu", swapped_geglu),
        "downsampling padded as SAME": replaced(unet_conditional, "conv", strided_from(1)),
        "JAX's nearest": replaced(unet_conditional, "upsample_nearest", half_pixel_nearest),
    }


def autoencoder_faults(net):
    """{fault: (the network, what is replaced)}."""
    return {
        "group norm eps 1e-5": (net, {(autoencoder, "NORM_EPS"): 1e-5}),
        "downsampling padded on all sides": (net, {(autoencoder, "conv"): strided_from(0)}),
    }


def clip_faults(net):
    """{fault: (the network, what is replaced)}."""
    return {
        "layer norm eps 1e-6": (dataclasses.replace(net, norm_eps=1e-6), {}),
        "gelu for quick_gelu": (dataclasses.replace(net, activation="gelu"), {}),
        "no final norm": (net, {(clip_text, "LayerNorm"): without_final_norm}),
        "no causal mask": (net, {(clip_text, "multi_head_attention"): unmasked}),
    }


FAULTS = (
    ("unet", UNET, FAULTY_SIZE, unet_faults),
    ("vae", AUTOENCODER, (32, 24), autoencoder_faults),
    ("text_encoder", CLIP, None, clip_faults),
)


def print_faults(folder):
    """Inject each fault. Return how many lines are wrong: a missed fault, or one without any."""
    caught = []
    wrong = 0
    for part, config, size, faults in FAULTS:
        sample = random_sample(part, config, 0, size)
        sample.model.save_pretrained(folder / "theirs")
        net, params = load(folder / "theirs", part)
        reference = theirs(sample)
        for name, (faulty_net, replaced) in {"none": (net, {}), **faults(net)}.items():
            with ExitStack() as stack:
                for (module, attribute), value in replaced.items():
                    stack.enter_context(mock.patch.object(module, attribute, value))
                difference = largest_difference(run(faulty_net, params, sample.inputs), reference)
            over = difference > BOUNDS[part]
            is_fault = name != "none"
            mark = "" if over == is_fault else "WRONG"
            print(f"{part:14}{name:34}{difference:8.1e}  {mark}", flush=True)
            wrong += over != is_fault
            if is_fault:
                caught.append(over)
    print(f"{sum(caught)} of {len(caught)} faults caught")
    return wrong


STABLE_DIFFUSION_2 = {"context_dim": 1024, "heads": (5, 10, 20, 20), "linear_projection": True}
CLIP_2 = {"width": 1024, "hidden_width": 4096, "layers": 23, "heads": 16, "activation": "gelu"}
COUNTS = {
    "SD 1.x U-Net": (ConditionalUNet(), 859_520_964, 686),
    "SD 1.x inpainting U-Net": (ConditionalUNet(in_channels=9), 859_535_364, 686),
    "SD 2.x U-Net": (ConditionalUNet(**STABLE_DIFFUSION_2), 865_910_724, 686),
    "autoencoder": (Autoencoder(), 83_653_863, 248),
    "SD 1.x text encoder": (ClipText(), 123_060_480, 196),
    "SD 2.x text encoder": (ClipText(**CLIP_2), 340_387_840, 372),
}
"""{name: (network, its number of parameters, its number of tensors)}."""


def print_counts():
    """Compare numbers of parameters and tensors. Return how many differ."""
    wrong = 0
    for name, (net, parameters, tensors) in COUNTS.items():
        counted = net.parameter_count(), len(jax.tree.leaves(net.shapes()))
        differs = counted != (parameters, tensors)
        mark = "DIFFERS" if differs else ""
        print(f"{name:26}{counted[0]:>14,}{counted[1]:>6}  {mark}", flush=True)
        wrong += differs
    return wrong


def array(*shape):
    """The shape of a float32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def print_memory():
    """Compile Stable Diffusion's own sizes from shapes. Return how many take too much memory."""
    unet, vae = ConditionalUNet(), Autoencoder()
    text = TextCondition(array(2, 77, 768))
    programs = {
        "U-Net, batch 2": (unet.apply, unet, (array(2, 64, 64, 4), array(2), text), 0.6),
        "decode 1 image": (vae.decode, vae, (array(1, 64, 64, 4),), 0.9),
        "decode 4 images": (vae.decode, vae, (array(4, 64, 64, 4),), 0.9),
        "encode 4 images": (vae.encode, vae, (array(4, 512, 512, 3),), 0.9),
    }
    wrong = 0
    for name, (function, net, arguments, limit) in programs.items():
        compiled = jax.jit(function).lower(net.shapes(), *arguments).compile()
        used = compiled.memory_analysis().temp_size_in_bytes / GIB
        mark = "OVER" if used > limit else ""
        print(f"{name:26}{used:6.2f} GiB of at most {limit} GiB  {mark}", flush=True)
        wrong += used > limit
    return wrong


def compare():
    """Print the tables. Return the figures, and how many lines are wrong without one."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    versions = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, torch {torch.__version__}, jax {jax.__version__}")
    print("net                 size  parameters  float32 bfloat16: ours, theirs  back")
    with tempfile.TemporaryDirectory() as folder:
        figures, wrong = print_random(Path(folder))
        print("faults")
        wrong += print_faults(Path(folder))
    print("parameters and tensors")
    wrong += print_counts()
    print("temporary memory of compiled programs")
    wrong += print_memory()
    return figures, wrong


def write_fixture():
    """Record the outputs of PyTorch for the networks of `helpers.stable_diffusion`."""
    arrays = {}
    for name, (part, config) in CONFIGS.items():
        model = build(part, config)
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        tensors = {key: torch.tensor(array) for key, array in weights(shapes).items()}
        model.load_state_dict(tensors)
        header = {"part": part, "config": config, "shapes": shapes}
        arrays[f"{name}/header"] = json.dumps(header)
        for i, output in enumerate(theirs(Sample(part, model, inputs(part)))):
            arrays[f"{name}/outputs/{i}"] = output
    np.savez_compressed(FIXTURE, **arrays)
    print(FIXTURE, FIXTURE.stat().st_size)


if __name__ == "__main__":
    write_fixture()
