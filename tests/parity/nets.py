"""diffusers' UNet2DModel beside our UNet: python tests/parity/nets.py  (extra `parity`).

Random configurations, the named public topologies with random weights, all saved by diffusers and loaded by us from its
files, and exported by us and loaded by diffusers. A line of the table gives

float32   the largest difference of the outputs over the largest output
bfloat16  our largest difference from diffusers' float32 output, and diffusers' own
back      whether our export gives diffusers the same tensors, bit for bit, and the same output

Then the formats that diffusers writes, and ten faults, each put into the net or its weights, and what difference they
make. The exit status is 1 if a line is over its bound (5e-6; in bfloat16 1.5 times that of diffusers), or a fault is
within it.
"""

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

from ddpm_jax.pretrained.unet_config import DEFAULTS
from ddpm_jax.pretrained.unet_folder import load_net, save_net
from ddpm_jax.pretrained.weight_names import to_state_dict

BOUND, HALF_BOUND, RANDOM_NETS = 5e-6, 1.5, 30
DDPM = {
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "attention_head_dim": None,
}


def levels(attended_down, attended_up, count, kind=""):
    """The types of blocks, those at the given places with attention."""
    ways = (("Down", attended_down), ("Up", attended_up))
    return {
        f"{way.lower()}_block_types": [
            f"{'Attn' * (i in at)}{kind}{way}Block2D" for i in range(count)
        ]
        for way, at in ways
    }


NAMED = {
    "google/ddpm-*-256": {
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        **levels([4], [1], 6),
        **DDPM,
    },
    "google/ddpm-cifar10-32": {
        "block_out_channels": [128, 256, 256, 256],
        **levels([1], [2], 4),
        **DDPM,
    },
    "johnowhitaker/ddpm-butterflies-32px": {
        "block_out_channels": [64, 128, 128, 256],
        **levels([2, 3], [0, 1], 4),
    },
    "google/ncsnpp-*-256": {
        "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
        **levels([4], [2], 7, "Skip"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "norm_num_groups": None,
        "mid_block_scale_factor": 2**0.5,
        "time_embedding_type": "fourier",
    },
    "the defaults": {},
}


def random_config(rng):
    """A config that UNet2DModel accepts."""

    def any_of(*values):
        return values[rng.integers(len(values))]

    count = int(rng.integers(1, 4))
    attended = [np.flatnonzero(rng.integers(0, 2, count)).tolist() for _ in range(2)]
    skip = rng.random() < 0.2
    config = {
        "block_out_channels": [any_of(32, 64, 96) for _ in range(count)],
        **levels(*attended, count, "Skip" if skip else ""),
        "layers_per_block": any_of(1, 2),
        "attention_head_dim": any_of(None, 8, 16, 32),
        "norm_num_groups": None if skip else any_of(8, 16, 32),
        "norm_eps": any_of(1e-5, 1e-6),
        "act_fn": any_of("silu", "swish", "mish", "gelu", "relu"),
        "resnet_time_scale_shift": any_of("default", "default", "scale_shift"),
        "downsample_type": any_of("conv", "resnet"),
        "upsample_type": any_of("conv", "resnet"),
        "downsample_padding": any_of(0, 1),
        "time_embedding_type": any_of("positional", "positional", "fourier", "learned"),
        "time_embedding_dim": any_of(None, 48),
        "num_train_timesteps": 1000,
        "freq_shift": any_of(0, 1),
        "flip_sin_to_cos": any_of(True, False),
        "add_attention": any_of(True, True, False),
        "mid_block_type": any_of("UNetMidBlock2D", "UNetMidBlock2D", None),
        "mid_block_scale_factor": any_of(1, 2**0.5),
        "attn_norm_num_groups": any_of(None, 4),
        "class_embed_type": any_of(None, None, "timestep", "identity"),
        "num_class_embeds": any_of(None, 7),
        "center_input_sample": any_of(False, True),
        "dropout": any_of(0.0, 0.1),
    }
    if config["class_embed_type"] is not None:
        config["num_class_embeds"] = None
    return config | (
        {}
        if skip
        else dict(zip(("in_channels", "out_channels"), any_of((1, 1), (3, 3), (3, 6)), strict=True))
    )


def example(net, size):
    """Pictures, timesteps and labels for a net, as numpy arrays, NHWC."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, size, size, net.channels)).astype(np.float32)
    width = net.time_embedding_dim or 4 * net.widths[0]
    labels = {
        "numbers": np.array([1, 5, 2, 6]),
        "vectors": rng.normal(size=(4, width)).astype(np.float32),
    }
    labels["classes"] = None if net.num_classes is None else np.array([1, 5, 0, 6])
    return images, np.array([3, 941, 250, 600]), labels[net.labels_are]


def ours(net, params, inputs, dtype=jnp.float32):
    arrays = (None if x is None else jnp.asarray(x) for x in inputs)
    return np.asarray(jax.jit(net.apply, static_argnames="dtype")(params, *arrays, dtype=dtype))


def theirs(model, inputs, dtype=torch.float32):
    images, t, labels = inputs
    labels = (
        None
        if labels is None
        else torch.tensor(labels, dtype=dtype if labels.dtype.kind == "f" else None)
    )
    images = torch.tensor(images.transpose(0, 3, 1, 2)).to(dtype)
    with torch.no_grad():
        return (
            model.to(dtype)(images, torch.tensor(t), labels)
            .sample.float()
            .numpy()
            .transpose(0, 2, 3, 1)
        )


def relative(found, wanted):
    return np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))


def made(config, seed):
    """A net of diffusers whose parameters are all random."""
    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(**{"sample_size": 32} | config).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def print_line(name, config, seed, folder, size):
    """One net there and back; whether it is over a bound."""
    model = made({"sample_size": size} | config, seed)
    model.save_pretrained(folder / "theirs")
    net, params = load_net(folder / "theirs")
    inputs = example(net, size)
    wanted = theirs(model, inputs)
    exact, half = (
        relative(ours(net, params, inputs), wanted),
        relative(ours(net, params, inputs, jnp.bfloat16), wanted),
    )
    save_net(net, params, folder / "ours")
    again = diffusers.UNet2DModel.from_pretrained(folder / "ours").eval()
    before, after = model.state_dict(), again.state_dict()
    same = before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    same = same and relative(theirs(again, inputs), wanted) <= BOUND
    alone = net.labels_are == "numbers"  # which diffusers cannot compute in bfloat16
    their_half = np.inf if alone else relative(theirs(model, inputs, torch.bfloat16), wanted)
    over = not (exact <= BOUND and half <= HALF_BOUND * their_half and same)
    said = f"{name:38}{net.parameter_count():>13,}  {exact:7.1e}  {half:8.1e} {their_half:8.1e}  "
    print(f"{said}{'same' if same else 'DIFFERS'}  {'OVER' if over else ''}", flush=True)
    return over


def faults(net, params):
    """What is wrong, and the net and parameters with it."""

    def having(**changes):
        return dataclasses.replace(net, **changes), params

    def with_leaf(*path, change):
        def at(tree, rest):
            return change(tree) if not rest else {**tree, rest[0]: at(tree[rest[0]], rest[1:])}

        return net, at(params, path)

    def swapped(block):
        return {**block, "to_q": block["to_v"], "to_v": block["to_q"]}

    yield "epsilon of the norms", having(norm_eps=1e-5)
    yield "freq_shift", having(freq_shift=0.0)
    yield "sine and cosine", having(flip_sin_to_cos=True)
    yield "padding of the strided convolution", having(symmetric_padding=True)
    yield "heads", having(head_dim=8)
    yield "gelu for silu", having(activation="gelu")
    yield "groups", having(groups=16)
    yield "q and v", with_leaf("down_1", "attention_0", change=swapped)
    kernel = ("down_0", "resnet_0", "conv1", "kernel")
    yield "height and width of a kernel", with_leaf(*kernel, change=lambda k: k.swapaxes(0, 1))
    yield "a matrix not transposed", with_leaf("time_linear_2", "kernel", change=lambda k: k.T)


def print_faults(folder):
    """Ten faults; how many of them make no difference that counts."""
    model = made({"block_out_channels": [32, 64], **levels([1], [0], 2), **DDPM}, 0)
    model.save_pretrained(folder / "theirs")
    net, params = load_net(folder / "theirs")
    inputs, missed = example(net, 32), 0
    wanted = theirs(model, inputs)
    for name, (wrong, weights) in faults(net, params):
        difference = relative(ours(wrong, weights, inputs), wanted)
        missed += difference <= BOUND
        print(f"{name:38}{difference:8.1e}  {'MISSED' if difference <= BOUND else ''}", flush=True)
    return missed


def print_formats(folder):
    """A net in each format that diffusers writes; how many of them do not hold its numbers."""
    model, wrong = made({"block_out_channels": [32, 64], **levels([1], [0], 2)}, 0), 0
    ways = {
        "safetensors": (torch.float32, {}),
        "shards": (torch.float32, {"max_shard_size": "500KB"}),
        "variant fp16": (torch.float16, {"variant": "fp16"}),
        "shards of a variant": (torch.float16, {"variant": "fp16", "max_shard_size": "500KB"}),
        "bfloat16": (torch.bfloat16, {}),
        "bin": (torch.float32, {"safe_serialization": False}),
        "bin of bfloat16": (torch.bfloat16, {"safe_serialization": False}),
        "bin in shards": (torch.float32, {"safe_serialization": False, "max_shard_size": "500KB"}),
    }
    for name, (dtype, how) in ways.items():
        model.to(dtype).save_pretrained(folder / name, **how)
        net, params = load_net(folder / name)
        tensors = to_state_dict(net, params)
        same = all(
            np.array_equal(tensors[key], value.float().numpy())
            for key, value in model.state_dict().items()
        )
        wrong += not same
        files = len(
            list((folder / name).glob("*.bin")) + list((folder / name).glob("*.safetensors"))
        )
        print(f"{name:38}{files} files  {'same' if same else 'DIFFERS'}", flush=True)
    return wrong


def print_defaults():
    """Whether diffusers takes other values than we for keys that are missing."""
    signature = inspect.signature(diffusers.UNet2DModel.__init__).parameters.values()
    defaults = {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in signature
    }
    wrong = defaults != {"self": inspect.Parameter.empty} | DEFAULTS
    print(f"defaults of config.json               {'DIFFER' if wrong else 'same'}")
    return wrong


def main():
    """Prints the tables; returns how many lines are not as they should be."""
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    print(f"{'net':38}{'parameters':>13}  float32  bfloat16: ours and theirs  back")
    rng, wrong = np.random.default_rng(0), 0
    nets = [(f"random {i}", random_config(rng), 16) for i in range(RANDOM_NETS)]
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, config, size) in enumerate(
            [*nets, *((name, NAMED[name], 64) for name in NAMED)]
        ):
            wrong += print_line(name, config, seed, Path(folder), size)
        wrong += print_defaults()
        print("formats")
        wrong += print_formats(Path(folder))
        print("faults")
        wrong += print_faults(Path(folder))
    print(f"{wrong} not as they should be")
    return wrong


if __name__ == "__main__":
    sys.exit(main() > 0)
