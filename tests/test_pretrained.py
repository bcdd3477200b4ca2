"""Nets in the diffusers layout: the outputs that diffusers has of them, and what will not do."""

import dataclasses
import json
import shutil
from collections import OrderedDict

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from example_pretrained import NETS, Call, Global, Storage, fixture, pickled, save_bin, tensor, write_bin
from safetensors.numpy import save_file

from ddpm_jax.models.unet import UNet
from ddpm_jax.pretrained.names import to_state_dict
from ddpm_jax.pretrained.nets import load_net, save_net
from ddpm_jax.pretrained.torch_pickle import read_bin
from ddpm_jax.pretrained.unet_config import DEFAULTS, config_of, unet_of

every_net = pytest.mark.parametrize("name", NETS)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@every_net
def test_the_output_is_that_of_diffusers(name, tmp_path, precise):
    arrays, _, _ = fixture(name, tmp_path)
    net, params = load_net(tmp_path)
    labels = jnp.asarray(arrays["labels"]) if "labels" in arrays else None
    output = jax.jit(net.apply)(params, jnp.asarray(arrays["images"]), jnp.asarray(arrays["t"]), labels)
    error = np.max(np.abs(output - arrays["output"])) / np.max(np.abs(arrays["output"]))
    assert error < 5e-6


@every_net
def test_a_round_trip_keeps_every_bit_and_every_setting(name, tmp_path):
    _, config, weights = fixture(name, tmp_path)
    net, params = load_net(tmp_path)
    save_net(net, params, tmp_path / "again")
    again, same = load_net(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert jax.tree.structure(params) == jax.tree.structure(net.init(jax.random.key(0)))
    tensors = to_state_dict(net, params)
    assert tensors.keys() == weights.keys()
    for key in weights:
        np.testing.assert_array_equal(tensors[key], weights[key])
    written = json.loads((tmp_path / "again/config.json").read_text())
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    assert {key: written[key] for key in known} == known
    assert unet_of(config_of(again)) == again


@pytest.mark.parametrize(
    "net",
    [
        UNet(image_size=8, channels=1),
        UNet(image_size=8, channels=3, num_classes=10, label_dropout=0.1, symmetric_padding=True, head_dim=8),
        UNet(image_size=8, channels=3, modulation="scale_shift", learned_variance=True, init_scheme="torch"),
    ],
)
def test_a_net_of_ours_survives_but_for_what_only_training_needs(net):
    again = unet_of(config_of(net))
    assert jax.tree.map(jnp.shape, again.shapes()) == jax.tree.map(jnp.shape, net.shapes())
    assert again.num_classes == (net.label_count or None)
    for name in ("widths", "attention", "head_dim", "norm_eps", "symmetric_padding", "learned_variance", "freq_shift"):
        assert getattr(again, name) == getattr(net, name)


def test_all_formats_hold_the_same_net(tmp_path):
    _, _, weights = fixture("butterflies", tmp_path)
    _, wanted = load_net(tmp_path)
    whole = tmp_path / WEIGHTS
    half = [dict(list(weights.items())[i::2]) for i in (0, 1)]

    def same(variant=None):
        jax.tree.map(np.testing.assert_array_equal, load_net(tmp_path, variant)[1], wanted)

    shutil.move(whole, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    same()
    same("fp16")
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").unlink()
    save_bin(tmp_path / "diffusion_pytorch_model.bin", weights)
    same()
    (tmp_path / "diffusion_pytorch_model.bin").unlink()
    for i, part in enumerate(half):
        save_file(part, tmp_path / f"part{i}.safetensors")
    places = {key: f"part{i}.safetensors" for i, part in enumerate(half) for key in part}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    same()
    with pytest.raises(FileNotFoundError, match=r"no weights \(diffusion_pytorch_model.bf16.safetensors\)"):
        load_net(tmp_path, "bf16")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("DoubleStorage", np.float64),
        ("BFloat16Storage", ml_dtypes.bfloat16),
    ],
)
def test_a_bin_is_read_in_every_type_and_layout(kind, dtype, tmp_path):
    numbers = (np.arange(24) / 7).astype(dtype)
    storage, empty = Storage("0", numbers, kind), Storage("1", numbers[:0], kind)
    layouts = {
        "transposed": (tensor(storage, (4, 3), (1, 4)), numbers[:12].reshape(3, 4).T),
        "every other from the second row": (tensor(storage, (3, 3), (6, 2), 6), numbers.reshape(4, 6)[1:, ::2]),
        "of no axes": (tensor(storage, (), (), 23), numbers[23]),
        "of no numbers": (tensor(empty, (0, 4), (4, 1)), numbers[:0].reshape(0, 4)),
    }
    data = pickled({name: stored for name, (stored, _) in layouts.items()})
    write_bin(tmp_path / "weights.bin", data, [storage, empty])
    found = read_bin(tmp_path / "weights.bin")
    for name, (_, wanted) in layouts.items():
        assert found[name].shape == wanted.shape
        assert found[name].read().dtype == np.float32
        np.testing.assert_array_equal(found[name].read(), wanted.astype(np.float32))


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


def test_legacy_names_of_attention_are_read(tmp_path):
    _, _, weights = fixture("ddpm", tmp_path)
    _, wanted = load_net(tmp_path)
    legacy = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key):
        for new, old in legacy.items():
            key = key.replace(f".{new}.", f".{old}.")
        return key

    save_file({renamed(key): value for key, value in weights.items()}, tmp_path / WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, load_net(tmp_path)[1], wanted)


def test_missing_stands_for_the_default_and_null_does_not():
    assert unet_of({"sample_size": 32}).head_dim == DEFAULTS["attention_head_dim"] == 8
    assert unet_of({"sample_size": 32, "attention_head_dim": None}).head_dim is None
    listed = {"sample_size": 32, "norm_eps": 1e-3, "_use_default_values": ["norm_eps"], "_name_or_path": "x"}
    assert unet_of(listed).norm_eps == 1e-5
    assert unet_of({"sample_size": 32}).parameter_count() == 274_056_163
    assert unet_of({}, image_size=64).image_size == 64
    assert unet_of({"sample_size": [32, 32], "decay": 0.9999}).image_size == 32


SKIP = {
    "block_out_channels": [8, 16],
    "down_block_types": ["SkipDownBlock2D"] * 2,
    "up_block_types": ["SkipUpBlock2D"] * 2,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cross_attention_dim": 768}, r"says \['cross_attention_dim'\], which is not understood"),
        ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, not a UNet2DModel"),
        ({"sample_size": None}, "names no sample_size"),
        ({"sample_size": [32, 64]}, "not square"),
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, "down_block_types 'CrossAttnDownBlock2D' is not understood"),
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
        (SKIP | {"in_channels": 1, "out_channels": 1}, "skip levels .* 3 channels on the way down, not 1"),
        (SKIP | {"out_channels": 6}, "skip levels .* 3 channels on the way up, not 6"),
        (SKIP | {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}, "up_kinds: all levels finer than a skip level"),
        (SKIP | {"up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": None}, "needs groups for its norms"),
        ({"attn_norm_num_groups": 0}, "attn_norm_num_groups 0 is not within"),
    ],
)
def test_what_is_not_understood_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        unet_of({"sample_size": 32} | config)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_every_leaf_is_filled_once(change, tmp_path):
    _, _, weights = fixture("ddpm", tmp_path)
    key = "conv_in.weight"
    weights |= {"left over": {"extra.weight": weights[key]}, "of another shape": {key: weights[key][:1]}}.get(
        change, {}
    )
    if change == "missing":
        del weights[key]
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"1 {change}: {'extra' if change == 'left over' else key}"):
        load_net(tmp_path)


def test_parameters_of_another_net_are_not_written():
    net = UNet(image_size=8, channels=1, widths=(4, 8), attention=(False, False), groups=4, layers_per_level=1)
    wanted = {
        "missing": {"attention": (True, False)},
        "left over": {"middle": "none"},
        "of another shape": {"channels": 3},
    }
    for fault, settings in wanted.items():
        with pytest.raises(ValueError, match=rf"not those of the net: \d+ {fault}: "):
            to_state_dict(dataclasses.replace(net, **settings), net.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="left over: down_2"):
        to_state_dict(net, dataclasses.replace(net, widths=(4, 8, 8), attention=(False,) * 3).init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 1}, "3 channels on the way down, not 1"),
        ({"channels": 1, "down_kinds": ()}, "3 channels on the way up, not 1"),
        ({"learned_variance": True}, "3 channels on the way up, not 6"),
        ({"up_kinds": ()}, "needs groups for its norms"),
    ],
)
def test_skip_levels_that_diffusers_has_not_are_not_written(settings, message):
    net = unet_of(SKIP | {"norm_num_groups": None}, image_size=8)
    assert unet_of(config_of(net)) == net
    with pytest.raises(ValueError, match=message):
        config_of(dataclasses.replace(net, **settings))


def test_a_net_that_diffusers_has_not_is_not_written(tmp_path):
    net = UNet(
        image_size=8, channels=1, down_kinds=("resnet", "conv", "conv", "conv"), attention=(True, True, False, False)
    )
    with pytest.raises(ValueError, match="one way to go down from levels with attention"):
        config_of(net)
    assert (
        config_of(dataclasses.replace(net, attention=(False,) * 4))["down_block_types"][0] == "ResnetDownsampleBlock2D"
    )
