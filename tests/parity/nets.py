"""Compare diffusers' UNet2DModel with our UNet.

    python tests/parity/nets.py    # needs the extra `parity`

It takes about 17 minutes of CPU time and 8 GiB of memory.

Networks with random configs and with public topologies, all with random weights, are saved by
diffusers and loaded by us, then saved by us and loaded by diffusers. Every third of those with
random configs takes images of 16x24. Each line shows

float32   the largest difference of the outputs, relative to the largest output
bfloat16  the difference of our bfloat16 output from diffusers' float32 output, and that of
          diffusers' bfloat16 output, both relative to the largest float32 output; "-" if diffusers
          cannot compute with the network's labels in bfloat16
back      whether diffusers reads the same tensors from our export, bit for bit, and whether its
          output is the same within the bound for float32

The next lines compare the defaults of config.json and every format of weights that diffusers
writes. The last lines show ten faults, each injected into the network or its weights, and the
difference of the outputs that each causes.

The exit status is 1 if a difference is over its bound (5e-6 in float32; in bfloat16, 1.5 times that
of diffusers), if anything that should be the same is not, or if a fault stays within the bound.
"""

import shared  # before torch

# isort: split
import dataclasses
import inspect
import sys
import tempfile
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from ddpm_jax.image_size import sides
from ddpm_jax.pretrained.unet_config import DEFAULTS
from ddpm_jax.pretrained.unet_folder import load_net, save_net
from ddpm_jax.pretrained.weight_names import to_state_dict

BOUND = 5e-6
BFLOAT16_BOUND = 1.5
NUM_RANDOM_NETS = 30
DDPM = {
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "attention_head_dim": None,
}


def block_types(down_attention, up_attention, num_levels, kind=""):
    """The types of the blocks, with attention at the given levels."""
    types = {}
    for direction, attention in (("Down", down_attention), ("Up", up_attention)):
        types[f"{direction.lower()}_block_types"] = [
            f"{'Attn' if i in attention else ''}{kind}{direction}Block2D" for i in range(num_levels)
        ]
    return types


NAMED = {
    "google/ddpm-*-256": {
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        **block_types([4], [1], 6),
        **DDPM,
    },
    "google/ddpm-cifar10-32": {
        "block_out_channels": [128, 256, 256, 256],
        **block_types([1], [2], 4),
        **DDPM,
    },
    "johnowhitaker/ddpm-butterflies-32px": {
        "block_out_channels": [64, 128, 128, 256],
        **block_types([2, 3], [0, 1], 4),
    },
    "google/ncsnpp-*-256": {
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        **block_types([4], [2], 7, "Skip"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "norm_num_groups": None,
        "mid_block_scale_factor": 2**0.5,
        "time_embedding_type": "fourier",
    },
    "the defaults": {},
}


SIZES = {"google/ddpm-*-256": 64, "google/ncsnpp-*-256": 64}
"""Images of networks with so many levels that 32 pixels would be less than one."""


def random_config(rng):
    """A random config that UNet2DModel accepts."""

    def choose(*values):
        return values[rng.integers(len(values))]

    num_levels = int(rng.integers(1, 4))
    attention = [np.flatnonzero(rng.integers(0, 2, num_levels)).tolist() for _ in range(2)]
    skip = rng.random() < 0.2
    config = {
        "block_out_channels": [choose(32, 64, 96) for _ in range(num_levels)],
        **block_types(*attention, num_levels, "Skip" if skip else ""),
        "layers_per_block": choose(1, 2),
        "attention_head_dim": choose(None, 8, 16, 32),
        "norm_num_groups": None if skip else choose(8, 16, 32),
        "norm_eps": choose(1e-5, 1e-6),
        "act_fn": choose("silu", "swish", "mish", "gelu", "relu"),
        "resnet_time_scale_shift": choose("default", "default", "scale_shift"),
        "downsample_type": choose("conv", "resnet"),
        "upsample_type": choose("conv", "resnet"),
        "downsample_padding": choose(0, 1),
        "time_embedding_type": choose("positional", "positional", "fourier", "learned"),
        "time_embedding_dim": choose(None, 48),
        "num_train_timesteps": 1000,
        "freq_shift": choose(0, 1),
        "flip_sin_to_cos": choose(True, False),
        "add_attention": choose(True, True, False),
        "mid_block_type": choose("UNetMidBlock2D", "UNetMidBlock2D", None),
        "mid_block_scale_factor": choose(1, 2**0.5),
        "attn_norm_num_groups": choose(None, 4),
        "class_embed_type": choose(None, None, "timestep", "identity"),
        "num_class_embeds": choose(None, 7),
        "center_input_sample": choose(False, True),
        "dropout": choose(0.0, 0.1),
    }
    if config["class_embed_type"] is not None:
        config["num_class_embeds"] = None
    if not skip:
        in_channels, out_channels = choose((1, 1), (3, 3), (3, 6))
        config |= {"in_channels": in_channels, "out_channels": out_channels}
    return config


def random_net(i, config):
    """The name, config, image size and number of images of random network i.

    Some have other channels than those of pictures, and some images are not square.
    """
    # Levels with skips to the image need three channels.
    if i % 4 == 1 and config["norm_num_groups"] is not None:
        config = config | {"in_channels": 5, "out_channels": 5}
    return f"random {i}", config, (16, 24) if i % 3 == 0 else 16, 4


def example(net, size, num_images=4):
    """Images (b, h, w, c), timesteps and labels for a network, as NumPy arrays."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *sides(size), net.channels)).astype(np.float32)
    width = net.time_embedding_dim or 4 * net.widths[0]
    labels = {
        "numbers": np.array([1, 5, 2, 6]),
        "vectors": rng.normal(size=(4, width)).astype(np.float32),
        "classes": None if net.num_classes is None else np.array([1, 5, 0, 6]),
    }
    arrays = (images, np.array([3, 941, 250, 600]), labels[net.labels_are])
    return tuple(None if array is None else array[:num_images] for array in arrays)


def ours(net, params, inputs, dtype=jnp.float32):
    """Our output (b, h, w, c)."""
    arrays = (None if x is None else jnp.asarray(x) for x in inputs)
    return np.asarray(jax.jit(net.apply, static_argnames="dtype")(params, *arrays, dtype=dtype))


def theirs(model, inputs, dtype=torch.float32):
    """The output of diffusers (b, h, w, c)."""
    images, t, labels = inputs
    if labels is not None:
        is_float = labels.dtype.kind == "f"
        labels = torch.tensor(labels, dtype=dtype if is_float else None)
    images = torch.tensor(images.transpose(0, 3, 1, 2)).to(dtype)  # (b, c, h, w)
    with torch.no_grad():
        output = model.to(dtype)(images, torch.tensor(t), labels).sample
    return output.float().numpy().transpose(0, 2, 3, 1)


def relative(result, reference):
    """The largest difference, relative to the largest reference."""
    return np.max(np.abs(result - reference)) / np.max(np.abs(reference))


def random_model(config, seed):
    """A network of diffusers in which every parameter is random."""
    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(**{"sample_size": 32} | config).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def print_line(name, config, seed, folder, size, num_images):
    """Compare one network, there and back. Return its figures and whether it came back wrong."""
    model = random_model({"sample_size": size} | config, seed)
    model.save_pretrained(folder / "theirs")
    net, params = load_net(folder / "theirs")
    inputs = example(net, size, num_images)
    reference = theirs(model, inputs)
    float32 = relative(ours(net, params, inputs), reference)
    figures = [shared.Figure(f"{name}, float32, relative to the largest output", float32, BOUND)]
    save_net(net, params, folder / "ours")
    again = diffusers.UNet2DModel.from_pretrained(folder / "ours").eval()
    before = model.state_dict()
    after = again.state_dict()
    same = before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    same = same and relative(theirs(again, inputs), reference) <= BOUND
    shown = f"{'-':>17}"
    if net.labels_are != "numbers":
        our_bfloat16 = relative(ours(net, params, inputs, jnp.bfloat16), reference)
        their_bfloat16 = relative(theirs(model, inputs, torch.bfloat16), reference)
        ratio = our_bfloat16 / their_bfloat16
        figures.append(shared.Figure(f"{name}, bfloat16, times diffusers'", ratio, BFLOAT16_BOUND))
        shown = f"{our_bfloat16:8.1e} {their_bfloat16:8.1e}"
    back = "same" if same else "DIFFERS"
    mark = "OVER" if any(figure.over for figure in figures) else ""
    counts = f"{name:38}{net.parameter_count():>13,}"
    print(f"{counts}  {float32:7.1e}  {shown}  {back}  {mark}", flush=True)
    return figures, not same


def faults(net, params):
    """Yield the name of each fault, and the network and parameters with it."""

    def with_settings(**changes):
        return dataclasses.replace(net, **changes), params

    def with_leaf(*path, change):
        def at(tree, rest):
            return change(tree) if not rest else {**tree, rest[0]: at(tree[rest[0]], rest[1:])}

        return net, at(params, path)

    def swap_q_and_v(block):
        return {**block, "to_q": block["to_v"], "to_v": block["to_q"]}

    yield "epsilon of the norms", with_settings(norm_eps=1e-5)
    yield "freq_shift", with_settings(freq_shift=0.0)
    yield "order of sine and cosine", with_settings(flip_sin_to_cos=True)
    yield "padding of the strided convolution", with_settings(symmetric_padding=True)
    yield "number of heads", with_settings(head_dim=8)
    yield "gelu instead of silu", with_settings(activation="gelu")
    yield "number of groups", with_settings(groups=16)
    yield "q and v swapped", with_leaf("down_1", "attention_0", change=swap_q_and_v)
    kernel = ("down_0", "resnet_0", "conv1", "kernel")
    yield "kernel height and width swapped", with_leaf(*kernel, change=lambda k: k.swapaxes(0, 1))
    yield "a matrix not transposed", with_leaf("time_linear_2", "kernel", change=lambda k: k.T)


def print_faults(folder):
    """Inject ten faults. Return how many cause no difference above the bound."""
    config = {"block_out_channels": [32, 64], **block_types([1], [0], 2), **DDPM}
    model = random_model(config, 0)
    model.save_pretrained(folder / "theirs")
    net, params = load_net(folder / "theirs")
    inputs = example(net, 32)
    reference = theirs(model, inputs)
    missed = 0
    for name, (wrong_net, wrong_params) in faults(net, params):
        difference = relative(ours(wrong_net, wrong_params, inputs), reference)
        missed += difference <= BOUND
        print(f"{name:38}{difference:8.1e}  {'MISSED' if difference <= BOUND else ''}", flush=True)
    return missed


def print_formats(folder):
    """Read a network in each format that diffusers writes. Return how many are read wrongly."""
    model = random_model({"block_out_channels": [32, 64], **block_types([1], [0], 2)}, 0)
    wrong = 0
    formats = {
        "safetensors": (torch.float32, {}),
        "shards": (torch.float32, {"max_shard_size": "500KB"}),
        "variant fp16": (torch.float16, {"variant": "fp16"}),
        "shards of a variant": (torch.float16, {"variant": "fp16", "max_shard_size": "500KB"}),
        "bfloat16": (torch.bfloat16, {}),
        "bin": (torch.float32, {"safe_serialization": False}),
        "bin of bfloat16": (torch.bfloat16, {"safe_serialization": False}),
        "bin in shards": (torch.float32, {"safe_serialization": False, "max_shard_size": "500KB"}),
    }
    for name, (dtype, options) in formats.items():
        model.to(dtype).save_pretrained(folder / name, **options)
        net, params = load_net(folder / name)
        tensors = to_state_dict(net, params)
        same = all(
            np.array_equal(tensors[key], value.float().numpy())
            for key, value in model.state_dict().items()
        )
        wrong += not same
        files = [*(folder / name).glob("*.bin"), *(folder / name).glob("*.safetensors")]
        print(f"{name:38}{len(files)} files  {'same' if same else 'DIFFERS'}", flush=True)
    return wrong


def print_defaults():
    """Compare the defaults of missing keys. Return whether any differs."""
    signature = inspect.signature(diffusers.UNet2DModel.__init__).parameters.values()
    defaults = {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in signature
    }
    wrong = defaults != {"self": inspect.Parameter.empty} | DEFAULTS
    print(f"defaults of config.json               {'DIFFER' if wrong else 'same'}")
    return wrong


def main():
    """Print the tables. Return the exit status."""
    shared.make_parser(__doc__).parse_args()
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    print(f"{'net':38}{'parameters':>13}  float32  bfloat16: ours and theirs  back")
    rng = np.random.default_rng(0)
    nets = [random_net(i, random_config(rng)) for i in range(NUM_RANDOM_NETS)]
    # With 32 pixels the coarsest of four levels has 4x4. Two images show whether rows mix.
    nets += [(name, config, SIZES.get(name, 32), 2) for name, config in NAMED.items()]
    figures = []
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, config, size, num_images) in enumerate(nets):
            its_figures, came_back_wrong = print_line(
                name, config, seed, Path(folder), size, num_images
            )
            figures += its_figures
            wrong += came_back_wrong
            if name in NAMED:
                shared.print_progress(name)
        wrong += print_defaults()
        print("formats")
        wrong += print_formats(Path(folder))
        print("faults")
        wrong += print_faults(Path(folder))
    what = f"{len(nets)} networks there and back, 8 formats of weights and 10 faults"
    return shared.conclude(what, figures, wrong)


if __name__ == "__main__":
    sys.exit(main())
