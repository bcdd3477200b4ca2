"""Nets in the diffusers layout: the outputs that diffusers has of them, and what is refused."""

import dataclasses
import functools
import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.pretrained import (
    NETS,
    Call,
    Global,
    Storage,
    fixture,
    pickled,
    save_bin,
    tensor,
    write_bin,
)
from helpers.refusals import assert_refused
from safetensors.numpy import save_file

from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.torch_pickle import read_bin
from ddpm_jax.pretrained.unet_config import DEFAULTS, unet_from_config, unet_to_config
from ddpm_jax.pretrained.unet_folder import load_net, read_net, read_params, save_net
from ddpm_jax.pretrained.weight_files import read_tensors
from ddpm_jax.pretrained.weight_names import to_state_dict

WEIGHTS = "diffusion_pytorch_model.safetensors"
FP16 = "diffusion_pytorch_model.fp16.safetensors"


def zeros(net):
    """Parameters of the net."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), net.shapes())


class Fixture(NamedTuple):
    """A net of diffusers with an output of its own, and the same net as we read it."""

    folder: Path
    arrays: dict
    config: dict
    weights: dict
    net: UNet
    params: dict


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Each fixture, read once."""

    @functools.cache
    def of(name):
        folder = tmp_path_factory.mktemp(name)
        return Fixture(folder, *fixture(name, folder), *load_net(folder))

    return of


@pytest.mark.parametrize("name", NETS)
def test_the_output_is_that_of_diffusers(name, read):
    arrays, net, params = read(name).arrays, read(name).net, read(name).params
    labels = jnp.asarray(arrays["labels"]) if "labels" in arrays else None
    images, t = jnp.asarray(arrays["images"]), jnp.asarray(arrays["t"])
    with jax.default_matmul_precision("highest"):
        output = jax.jit(net.apply)(params, images, t, labels)
    error = np.max(np.abs(output - arrays["output"])) / np.max(np.abs(arrays["output"]))
    assert error < 5e-6


@pytest.mark.parametrize("name", NETS)
def test_a_round_trip_keeps_every_bit_and_every_setting(name, read, tmp_path):
    _, _, config, weights, net, params = read(name)
    assert jax.tree.structure(params) == jax.tree.structure(net.shapes())
    save_net(net, params, tmp_path)
    assert_tensors_equal(read_tensors(tmp_path), weights)
    assert read_net(tmp_path) == net
    written = json.loads((tmp_path / "config.json").read_text())
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    assert {key: written[key] for key in known} == known


def assert_tensors_equal(found, weights):
    """Assert that stored tensors are these, bit by bit."""
    assert found.keys() == weights.keys()
    for name, stored in found.items():
        np.testing.assert_array_equal(stored.read(), weights[name], name)


def test_a_net_of_ours_keeps_all_that_its_output_needs():
    kept = (
        "widths",
        "attention",
        "head_dim",
        "norm_eps",
        "symmetric_padding",
        "learned_variance",
        "freq_shift",
        "modulation",
    )
    wide = {"widths": (32, 64), "attention": (False, True), "layers_per_level": 1}
    labelled = {"num_classes": 10, "label_dropout": 0.1}
    everything = {"modulation": "scale_shift", "learned_variance": True, "init_scheme": "torch"}
    everything |= labelled | {"symmetric_padding": True, "head_dim": 8}
    for settings in ({"channels": 1}, {"channels": 3, **wide, **everything}):
        net = UNet(image_size=8, **settings)
        again = unet_from_config(unet_to_config(net))
        assert again.num_classes == (net.label_count or None), settings
        for name in kept:
            assert getattr(again, name) == getattr(net, name), (settings, name)
    shapes = [jax.tree.map(lambda leaf: leaf.shape, each.shapes()) for each in (net, again)]
    assert shapes[0] == shapes[1]


def test_all_formats_hold_the_same_weights(read, tmp_path):
    weights = read("ddpm").weights
    shutil.copy(read("ddpm").folder / WEIGHTS, tmp_path / FP16)
    for variant in (None, "fp16"):
        assert_tensors_equal(read_tensors(tmp_path, variant), weights)
    (tmp_path / FP16).unlink()
    pickle = tmp_path / "diffusion_pytorch_model.bin"
    save_bin(pickle, weights)
    assert_tensors_equal(read_tensors(tmp_path), weights)
    pickle.unlink()
    places = {}
    for i in (0, 1):
        part = dict(list(weights.items())[i::2])
        save_file(part, tmp_path / f"part{i}.safetensors")
        places |= dict.fromkeys(part, f"part{i}.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert_tensors_equal(read_tensors(tmp_path), weights)
    message = r"no weights \(diffusion_pytorch_model.bf16.safetensors\)"
    with pytest.raises(FileNotFoundError, match=message):
        read_tensors(tmp_path, "bf16")


def test_a_bin_is_read_in_every_type_and_layout(tmp_path):
    for kind, dtype in (
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("DoubleStorage", np.float64),
        ("BFloat16Storage", ml_dtypes.bfloat16),
    ):
        numbers = (np.arange(24) / 7).astype(dtype)
        storage, empty = Storage("0", numbers, kind), Storage("1", numbers[:0], kind)
        every_other = numbers.reshape(4, 6)[1:, ::2]
        layouts = {
            "transposed": (tensor(storage, (4, 3), (1, 4)), numbers[:12].reshape(3, 4).T),
            "every other from the second row": (tensor(storage, (3, 3), (6, 2), 6), every_other),
            "of no axes": (tensor(storage, (), (), 23), numbers[23]),
            "of no numbers": (tensor(empty, (0, 4), (4, 1)), numbers[:0].reshape(0, 4)),
        }
        data = pickled({name: stored for name, (stored, _) in layouts.items()})
        path = tmp_path / f"{kind}.bin"
        write_bin(path, data, [storage, empty])
        found = read_bin(path)
        for name, (_, expected) in layouts.items():
            case = f"{kind}, {name}"
            assert found[name].shape == expected.shape, case
            read = found[name].read()
            assert read.dtype == np.float32, case
            np.testing.assert_array_equal(read, expected.astype(np.float32), case)


def test_a_bin_with_metadata_parameters_and_a_shared_storage_is_read(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    storage = Storage("0", numbers)
    second = tensor(storage, (6,), (1,), 6)
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), second, True, OrderedDict())
    weights = OrderedDict(first=tensor(storage, (2, 3), (3, 1)), second=parameter)
    weights._metadata = OrderedDict({"": {"version": 1}})
    write_bin(tmp_path / "weights.bin", pickled(weights), [storage])
    found = read_bin(tmp_path / "weights.bin")
    assert found.keys() == {"first", "second"}
    np.testing.assert_array_equal(found["first"].read(), numbers[:6].reshape(2, 3))
    np.testing.assert_array_equal(found["second"].read(), numbers[6:])


def test_legacy_names_of_attention_are_read(read, tmp_path):
    _, _, _, weights, net, expected = read("ddpm")
    legacy = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key):
        for new, old in legacy.items():
            key = key.replace(f".{new}.", f".{old}.")
        return key

    old = {renamed(key): value for key, value in weights.items()}
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / WEIGHTS)
    found = read_params(tmp_path, net)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_missing_key_is_the_default_of_diffusers_and_null_is_not():
    assert unet_from_config({"sample_size": 32}).head_dim == DEFAULTS["attention_head_dim"] == 8
    assert unet_from_config({"sample_size": 32, "attention_head_dim": None}).head_dim is None
    listed = {"sample_size": 32, "norm_eps": 1e-3, "_use_default_values": ["norm_eps"]}
    assert unet_from_config(listed | {"_name_or_path": "x"}).norm_eps == 1e-5
    assert unet_from_config({"sample_size": 32}).parameter_count() == 274_056_163
    assert unet_from_config({}, image_size=64).image_size == 64
    assert unet_from_config({"sample_size": [32, 32], "decay": 0.9999}).image_size == 32


SKIP = {
    "block_out_channels": [8, 16],
    "down_block_types": ["SkipDownBlock2D"] * 2,
    "up_block_types": ["SkipUpBlock2D"] * 2,
}
ONE_CHANNEL = {"in_channels": 1, "out_channels": 1}
UNKNOWN = [
    ({"cross_attention_dim": 768}, r"says \['cross_attention_dim'\], which is not understood"),
    ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, not a UNet2DModel"),
    ({"sample_size": None}, "names no sample_size"),
    ({"sample_size": [32, 64]}, "not square"),
    ({"down_block_types": ["CrossAttnDownBlock2D"]}, "'CrossAttnDownBlock2D' is not understood"),
    ({"act_fn": "tanh"}, "act_fn 'tanh' is not understood"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
    ({"out_channels": 4}, "out_channels 4 is neither"),
    ({"downsample_padding": 2}, "downsample_padding 2"),
    ({"time_embedding_type": ["positional"]}, "time_embedding_type must be"),
    ({"layers_per_block": 10**9}, "layers_per_block"),
    ({"block_out_channels": "wide"}, "block_out_channels must be"),
    ({"norm_eps": "1e-5"}, "norm_eps must be"),
    ({"in_channels": None}, "in_channels must be a whole number, not None"),
    ({"block_out_channels": None}, "block_out_channels must be a list"),
    ({"class_embed_type": []}, "class_embed_type"),
    ({"sample_size": "32"}, "sample_size 32 is not within"),
    ({"block_out_channels": [32]}, "levels, but widths has 1"),
    (SKIP | ONE_CHANNEL, "skip levels .* 3 channels on the way down, not 1"),
    (SKIP | {"out_channels": 6}, "skip levels .* 3 channels on the way up, not 6"),
    (
        SKIP | {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
        "up_kinds: all levels finer than a skip level",
    ),
    (
        SKIP | {"up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": None},
        "needs groups for its norms",
    ),
    ({"attn_norm_num_groups": 0}, "attn_norm_num_groups 0 is not within"),
]


def test_a_config_that_is_not_understood_is_refused():
    assert_refused(lambda config: unet_from_config({"sample_size": 32} | config), UNKNOWN)


def test_weights_fill_every_leaf_once(read, tmp_path):
    _, _, _, weights, net, _ = read("ddpm")
    key = "conv_in.weight"
    without = {name: value for name, value in weights.items() if name != key}
    for change, tensors in (
        (f"missing: {key}", without),
        ("left over: extra", weights | {"extra.weight": weights[key]}),
        (f"of another shape: {key}", weights | {key: weights[key][:1]}),
    ):
        save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=f": 1 {change}"):
            read_params(tmp_path, net)


SMALL = UNet(
    image_size=8,
    channels=1,
    widths=(4, 8),
    attention=(False, False),
    groups=4,
    layers_per_level=1,
)


def test_parameters_of_another_net_are_not_written():
    def attempt(settings):
        to_state_dict(SMALL, zeros(dataclasses.replace(SMALL, **settings)))

    to_state_dict(SMALL, zeros(SMALL))
    three = {"widths": (4, 8, 8), "attention": (False,) * 3}
    cases = [
        ({"middle": "none"}, r"not those of the net: \d+ missing: "),
        ({"channels": 3}, r"not those of the net: \d+ of another shape: "),
        (three, r"not those of the net: \d+ left over: down_2"),
    ]
    assert_refused(attempt, cases)


def test_a_net_that_diffusers_has_not_is_not_written():
    skip = unet_from_config(SKIP | {"norm_num_groups": None}, image_size=8)
    assert unet_from_config(unet_to_config(skip)) == skip
    mixed = UNet(
        image_size=8,
        channels=1,
        down_kinds=("resnet", "conv", "conv", "conv"),
        attention=(True, True, False, False),
    )
    without = dataclasses.replace(mixed, attention=(False,) * 4)
    assert unet_to_config(without)["down_block_types"][0] == "ResnetDownsampleBlock2D"
    cases = [
        ((skip, {"channels": 1}), "3 channels on the way down, not 1"),
        ((skip, {"channels": 1, "down_kinds": ()}), "3 channels on the way up, not 1"),
        ((skip, {"learned_variance": True}), "3 channels on the way up, not 6"),
        ((skip, {"up_kinds": ()}), "needs groups for its norms"),
        ((mixed, {}), "one way to go down from levels with attention"),
    ]
    assert_refused(lambda case: unet_to_config(dataclasses.replace(case[0], **case[1])), cases)
