"""Networks in the diffusers layout: their outputs match diffusers; other networks are refused."""

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
    """Parameters of the network, all zero."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), net.shapes())


class Fixture(NamedTuple):
    """A network of diffusers with one of its outputs, and the same network as it is read here."""

    folder: Path
    arrays: dict
    config: dict
    weights: dict
    net: UNet
    params: dict


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A function that reads a fixture by its name, each only once."""

    @functools.cache
    def read_fixture(name):
        folder = tmp_path_factory.mktemp(name)
        return Fixture(folder, *fixture(name, folder), *load_net(folder))

    return read_fixture


@pytest.mark.parametrize("name", NETS)
def test_output_matches_diffusers(name, read):
    _, arrays, _, _, net, params = read(name)
    labels = jnp.asarray(arrays["labels"]) if "labels" in arrays else None
    images = jnp.asarray(arrays["images"])
    t = jnp.asarray(arrays["t"])
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
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    assert {key: written[key] for key in settings} == settings


def assert_tensors_equal(tensors, weights):
    """Assert that stored tensors are equal to weights, bit by bit."""
    assert tensors.keys() == weights.keys()
    for name, stored in tensors.items():
        np.testing.assert_array_equal(stored.read(), weights[name], name)


def test_a_written_config_keeps_every_setting_that_changes_the_output():
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
        restored = unet_from_config(unet_to_config(net))
        assert restored.num_classes == (net.label_count or None), settings
        for name in kept:
            assert getattr(restored, name) == getattr(net, name), (settings, name)
    shapes = [jax.tree.map(lambda leaf: leaf.shape, model.shapes()) for model in (net, restored)]
    assert shapes[0] == shapes[1]


def test_all_formats_hold_the_same_weights(read, tmp_path):
    weights = read("ddpm").weights
    shutil.copy(read("ddpm").folder / WEIGHTS, tmp_path / FP16)
    for variant in (None, "fp16"):
        assert_tensors_equal(read_tensors(tmp_path, variant), weights)
    (tmp_path / FP16).unlink()
    bin_file = tmp_path / "diffusion_pytorch_model.bin"
    save_bin(bin_file, weights)
    assert_tensors_equal(read_tensors(tmp_path), weights)
    bin_file.unlink()
    weight_map = {}
    for i in (0, 1):
        shard = dict(list(weights.items())[i::2])
        save_file(shard, tmp_path / f"part{i}.safetensors")
        weight_map |= dict.fromkeys(shard, f"part{i}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert_tensors_equal(read_tensors(tmp_path), weights)
    message = r"no weights \(diffusion_pytorch_model.bf16.safetensors\)"
    with pytest.raises(FileNotFoundError, match=message):
        read_tensors(tmp_path, "bf16")


def test_a_bin_is_read_in_every_dtype_and_memory_layout(tmp_path):
    for kind, dtype in (
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("DoubleStorage", np.float64),
        ("BFloat16Storage", ml_dtypes.bfloat16),
    ):
        numbers = (np.arange(24) / 7).astype(dtype)
        storage = Storage("0", numbers, kind)
        empty = Storage("1", numbers[:0], kind)
        every_other = numbers.reshape(4, 6)[1:, ::2]
        layouts = {
            "transposed": (tensor(storage, (4, 3), (1, 4)), numbers[:12].reshape(3, 4).T),
            "strided and offset": (tensor(storage, (3, 3), (6, 2), 6), every_other),
            "scalar": (tensor(storage, (), (), 23), numbers[23]),
            "empty": (tensor(empty, (0, 4), (4, 1)), numbers[:0].reshape(0, 4)),
        }
        data = pickled({name: stored for name, (stored, _) in layouts.items()})
        path = tmp_path / f"{kind}.bin"
        write_bin(path, data, [storage, empty])
        tensors = read_bin(path)
        for name, (_, expected) in layouts.items():
            case = f"{kind}, {name}"
            assert tensors[name].shape == expected.shape, case
            array = tensors[name].read()
            assert array.dtype == np.float32, case
            np.testing.assert_array_equal(array, expected.astype(np.float32), case)


def test_a_bin_with_metadata_parameters_and_a_shared_storage_is_read(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    storage = Storage("0", numbers)
    second = tensor(storage, (6,), (1,), 6)
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), second, True, OrderedDict())
    weights = OrderedDict(first=tensor(storage, (2, 3), (3, 1)), second=parameter)
    weights._metadata = OrderedDict({"": {"version": 1}})
    write_bin(tmp_path / "weights.bin", pickled(weights), [storage])
    tensors = read_bin(tmp_path / "weights.bin")
    assert tensors.keys() == {"first", "second"}
    np.testing.assert_array_equal(tensors["first"].read(), numbers[:6].reshape(2, 3))
    np.testing.assert_array_equal(tensors["second"].read(), numbers[6:])


def test_legacy_names_of_attention_layers_are_read(read, tmp_path):
    _, _, _, weights, net, expected = read("ddpm")
    legacy = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def legacy_name(key):
        for new, old in legacy.items():
            key = key.replace(f".{new}.", f".{old}.")
        return key

    old_weights = {legacy_name(key): value for key, value in weights.items()}
    assert old_weights.keys() != weights.keys()
    save_file(old_weights, tmp_path / WEIGHTS)
    params = read_params(tmp_path, net)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_missing_key_takes_the_default_of_diffusers_and_null_does_not():
    assert unet_from_config({"sample_size": 32}).head_dim == DEFAULTS["attention_head_dim"] == 8
    assert unet_from_config({"sample_size": 32, "attention_head_dim": None}).head_dim is None
    listed = {"sample_size": 32, "norm_eps": 1e-3, "_use_default_values": ["norm_eps"]}
    assert unet_from_config(listed | {"_name_or_path": "x"}).norm_eps == 1e-5
    assert unet_from_config({"sample_size": 32}).parameter_count() == 274_056_163
    assert unet_from_config({}, image_size=64).image_size == 64
    assert unet_from_config({"sample_size": [32, 32], "decay": 0.9999}).image_size == 32
    assert unet_from_config({"sample_size": [32, 64]}).image_size == (32, 64)
    with pytest.raises(ValueError, match=r"block_out_channels must be a list, .* not \[None, 32\]"):
        unet_from_config({"sample_size": 32, "block_out_channels": [None, 32]})
    assert unet_from_config({}, image_size=(32, 64)).image_size == (32, 64)


SKIP = {
    "block_out_channels": [8, 16],
    "down_block_types": ["SkipDownBlock2D"] * 2,
    "up_block_types": ["SkipUpBlock2D"] * 2,
}
ONE_CHANNEL = {"in_channels": 1, "out_channels": 1}
UNSUPPORTED = [
    ({"cross_attention_dim": 768}, r"unsupported keys: \['cross_attention_dim'\]"),
    ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, not a UNet2DModel"),
    ({"sample_size": None}, "config.json has no sample_size"),
    ({"sample_size": [32, 64, 3]}, r"a height and a width, not \[32, 64, 3\]"),
    ({"sample_size": [32, None]}, r"a height and a width, not \[32, None\]"),
    ({"down_block_types": ["CrossAttnDownBlock2D"]}, "'CrossAttnDownBlock2D' is not supported"),
    ({"act_fn": "tanh"}, "act_fn 'tanh' is not supported"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
    ({"out_channels": 4}, "out_channels 4 is not supported: it must be in_channels, 3"),
    ({"downsample_padding": 2}, "downsample_padding 2"),
    ({"time_embedding_type": ["positional"]}, "time_embedding_type must be"),
    ({"layers_per_block": 10**9}, "layers_per_block"),
    ({"block_out_channels": "wide"}, "block_out_channels must be"),
    ({"norm_eps": "1e-5"}, "norm_eps must be"),
    ({"in_channels": None}, "in_channels must be a whole number, not None"),
    ({"block_out_channels": None}, "block_out_channels must be a list"),
    ({"class_embed_type": []}, "class_embed_type"),
    ({"sample_size": "32"}, "sample_size 32 is not a whole number from 1"),
    ({"block_out_channels": [32]}, "levels, but widths has 1"),
    (SKIP | ONE_CHANNEL, "down path need 3 channels in UNet2DModel: this network has 1"),
    (SKIP | {"out_channels": 6}, "up path need 3 channels in UNet2DModel: this network has 6"),
    (
        SKIP | {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
        "up_kinds: all levels finer than a skip level",
    ),
    (
        SKIP | {"up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": None},
        "needs norm_num_groups",
    ),
    ({"attn_norm_num_groups": 0}, "attn_norm_num_groups 0 is not a whole number from 1"),
]


def test_an_unsupported_config_is_refused():
    assert_refused(lambda config: unet_from_config({"sample_size": 32} | config), UNSUPPORTED)


def test_weights_with_missing_unexpected_or_misshapen_tensors_are_refused(read, tmp_path):
    _, _, _, weights, net, _ = read("ddpm")
    key = "conv_in.weight"
    without = {name: value for name, value in weights.items() if name != key}
    for difference, tensors in (
        (rf"missing \({key}\)", without),
        (r"unexpected \(extra", weights | {"extra.weight": weights[key]}),
        (rf"of another shape \({key}", weights | {key: weights[key][:1]}),
    ):
        save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=f": 1 {difference}"):
            read_params(tmp_path, net)


SMALL = UNet(
    image_size=8,
    channels=1,
    widths=(4, 8),
    attention=(False, False),
    groups=4,
    layers_per_level=1,
)


def test_parameters_of_another_network_are_not_written():
    def write(settings):
        to_state_dict(SMALL, zeros(dataclasses.replace(SMALL, **settings)))

    to_state_dict(SMALL, zeros(SMALL))
    three = {"widths": (4, 8, 8), "attention": (False,) * 3}
    cases = [
        ({"middle": "none"}, r"do not match the network: \d+ missing \("),
        ({"channels": 3}, r"do not match the network: \d+ of another shape \("),
        (three, r"do not match the network: \d+ unexpected \(down_2"),
    ]
    assert_refused(write, cases)


def test_a_network_unknown_to_diffusers_is_not_written():
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
        ((skip, {"channels": 1}), "down path need 3 channels in .* has 1"),
        ((skip, {"channels": 1, "down_kinds": ()}), "up path need 3 channels in .* has 1"),
        ((skip, {"learned_variance": True}), "up path need 3 channels in .* has 6"),
        ((skip, {"up_kinds": ()}), "needs norm_num_groups"),
        ((mixed, {}), "down levels with attention resample by conv and resnet"),
        (
            (without, {"vector_size": 2}),
            "has no condition by vector_size: only model.num_classes can",
        ),
        (
            (without, {"condition_channels": 1}),
            "has no condition by condition_channels: only model",
        ),
        (
            (without, {"augmentation": ("colour",)}),
            "has no condition by augmentation: only model.num",
        ),
    ]
    assert_refused(lambda case: unet_to_config(dataclasses.replace(case[0], **case[1])), cases)
