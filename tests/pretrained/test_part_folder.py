"""Stable Diffusion's networks in folders: names, settings and formats; others are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.pretrained import save_bin
from helpers.refusals import assert_refused
from helpers.stable_diffusion import CONFIGS, lazy, recorded, weights
from safetensors.numpy import save_file

from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.models.clip_text import ClipText
from ddpm_jax.models.unet_conditional import ConditionalUNet
from ddpm_jax.pretrained.part_folder import PARTS, read_part, read_part_params, save_part
from ddpm_jax.pretrained.weight_files import TRANSFORMERS, read_tensors, weights_file
from ddpm_jax.pretrained.weight_names import from_state_dict, to_state_dict

POSITIONS = "text_model.embeddings.position_ids"


def opened(name):
    """A network of the fixture, its tensors, and its parameters."""
    record = recorded(name)
    net = PARTS[record.part].from_config(record.config)
    tensors = weights(record.shapes)
    return net, tensors, from_state_dict(net, lazy(tensors))


def assert_trees_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_trip_keeps_every_tensor_under_its_name_and_every_setting(name, tmp_path):
    part, config = CONFIGS[name]
    net, tensors, params = opened(name)
    save_part(tmp_path, part, net, params)
    stored = read_tensors(tmp_path, files=PARTS[part].files)
    # transformers 5.6 and newer name the tensors of a fresh text encoder without the prefix.
    prefix = "text_model." if part == "text_encoder" else ""
    names = {f"{prefix}{key.removeprefix(prefix)}": array for key, array in tensors.items()}
    assert stored.keys() == names.keys()
    for key, array in names.items():
        np.testing.assert_array_equal(stored[key].read(), array, key)
    assert read_part(tmp_path, part) == net
    assert_trees_equal(read_part_params(tmp_path, part, net), params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in config if not key.endswith("token_id")} == {
        key: value for key, value in config.items() if not key.endswith("token_id")
    }


@pytest.mark.parametrize(
    ("part", "net"),
    [
        ("unet", ConditionalUNet(init_scheme="torch")),
        ("vae", Autoencoder()),
        ("text_encoder", ClipText()),
    ],
)
def test_the_settings_of_stable_diffusion_survive_their_config(part, net):
    assert PARTS[part].from_config(PARTS[part].to_config(net)) == net


def test_a_sample_size_may_be_a_height_and_a_width():
    for part, net in {"unet": ConditionalUNet(init_scheme="torch"), "vae": Autoencoder()}.items():
        wide = dataclasses.replace(net, sample_size=(8, 16))
        config = json.loads(json.dumps(PARTS[part].to_config(wide)))
        assert config["sample_size"] == [8, 16]
        assert PARTS[part].from_config(config) == wide
    assert PARTS["vae"].from_config({}).sample_size == 32


def test_linear_projections_and_convolutions_differ_in_the_shape_of_their_weights_alone():
    net, _, params = opened("unet")
    linear = PARTS["unet"].from_config(CONFIGS["unet"][1] | {"use_linear_projection": True})
    name = "down_blocks.0.attentions.0.proj_in.weight"
    assert to_state_dict(net, params)[name].shape == (8, 8, 1, 1)
    kernel = linear.shapes()["down_blocks.0.attentions.0"]["proj_in"]["kernel"]
    assert kernel.shape == (8, 8)


def test_old_names_of_the_autoencoders_attention_are_read():
    net, tensors, params = opened("vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, array in tensors.items():
        for new, legacy in old.items():
            name = name.replace(f".{new}.", f".{legacy}.")
        renamed[name] = array
    assert sum("proj_attn" in name for name in renamed) == 4
    assert_trees_equal(from_state_dict(net, lazy(renamed)), params)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_dialects_of_the_text_encoder_are_read(prefix):
    net, tensors, params = opened("clip")
    dialect = {prefix + name.removeprefix("text_model."): x for name, x in tensors.items()}
    assert_trees_equal(from_state_dict(net, lazy(dialect)), params)


def test_a_tensor_in_both_dialects_is_refused():
    net, tensors, _ = opened("clip")
    both = tensors | {f"text_model.{name}": array for name, array in tensors.items()}
    with pytest.raises(ValueError, match="both its old and its new name"):
        from_state_dict(net, lazy(both))


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_old_files_of_the_text_encoder_are_read_without_their_integer_positions(form, tmp_path):
    net, tensors, params = opened("clip")
    save = save_bin if form.endswith("bin") else lambda path, tensors: save_file(tensors, path)
    save(tmp_path / form, tensors | {POSITIONS: np.arange(12)[None]})
    assert_trees_equal(read_part_params(tmp_path, "text_encoder", net), params)


def test_other_integers_are_refused_in_either_format(tmp_path):
    integers = {"weight": np.arange(4)}
    save_file(integers, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="of type I64"):
        read_tensors(tmp_path, files=TRANSFORMERS)
    (tmp_path / "model.safetensors").unlink()
    save_bin(tmp_path / "pytorch_model.bin", integers)
    with pytest.raises(ValueError, match="holds integers, 'weight'"):
        read_tensors(tmp_path, files=TRANSFORMERS)


def test_weights_of_the_text_encoder_are_chosen_by_the_names_of_transformers():
    names = {"model.fp16.safetensors", "pytorch_model.bin", "model.safetensors", "config.json"}
    choose = lambda *without, variant=None: weights_file(  # noqa: E731
        names - set(without), variant, "a/b", TRANSFORMERS
    )
    assert choose() == "model.safetensors"
    assert choose(variant="fp16") == "model.fp16.safetensors"
    assert choose("model.safetensors") == "pytorch_model.bin"
    assert choose("model.safetensors", "pytorch_model.bin") == "model.fp16.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no weights \(model.bf16.safetensors\)"):
        choose(variant="bf16")


def test_weights_that_do_not_fit_are_refused_by_name():
    net, tensors, _ = opened("unet")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    without = {key: array for key, array in tensors.items() if key != name}
    assert_refused(
        lambda given: from_state_dict(net, lazy(given)),
        [
            (without, rf"1 missing \({name}\)"),
            (tensors | {"add_embedding.linear_1.bias": np.zeros(3)}, "1 unexpected"),
            (tensors | {name: np.zeros((3, 4))}, r"is \(3, 4\), not \(16, 12\)"),
        ],
    )


UNET_REFUSALS = [
    ({"hat": 3}, r"unet/config.json has unsupported keys: \['hat'\]"),
    ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time': .*XL"),
    ({"class_embed_type": "timestep"}, "class labels are not supported"),
    ({"time_cond_proj_dim": 256}, "latent consistency"),
    ({"downsample_padding": 0}, "downsample_padding is '0': only 1 is supported"),
    ({"only_cross_attention": True}, "only False is supported"),
    ({"sample_size": None}, "sample_size must be a whole number, not None"),
    ({"cross_attention_dim": [12, 12]}, "cross_attention_dim must be a whole number"),
    ({"attention_head_dim": [2, 4, 4]}, "heads names 3 levels"),
    ({"attention_head_dim": True}, "attention_head_dim must be a list"),
    ({"up_block_types": ["UpBlock2D"] * 2}, "opposite order"),
    ({"down_block_types": ["AttnDownBlock2D"] * 2}, "'AttnDownBlock2D' is not supported"),
    ({"block_out_channels": [8, 2**20]}, "from 1 to 16384"),
    ({"_class_name": "UNet2DModel"}, "describes a UNet2DModel, not a UNet2DConditionModel"),
]
VAE_REFUSALS = [
    ({"hat": 3}, r"vae/config.json has unsupported keys: \['hat'\]"),
    ({"shift_factor": 0.1}, "later models than Stable Diffusion 1 and 2"),
    ({"use_quant_conv": False}, "later models"),
    ({"out_channels": 1}, "out_channels must be in_channels, 3"),
    ({"down_block_types": ["DownEncoderBlock2D"]}, "one block for each"),
    ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "is not supported"),
]
CLIP_REFUSALS = [
    ({"hat": 3}, r"text_encoder/config.json has unsupported keys: \['hat'\]"),
    ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    ({"use_attention_mask": True}, "padding of texts is always visible"),
    ({"model_type": "t5"}, "model_type is 't5'"),
    ({"num_hidden_layers": 10**6}, "from 1 to 256"),
]


@pytest.mark.parametrize(
    ("name", "cases"), [("unet", UNET_REFUSALS), ("vae", VAE_REFUSALS), ("clip", CLIP_REFUSALS)]
)
def test_configs_of_other_networks_are_refused_in_one_line(name, cases):
    part, config = CONFIGS[name]
    read = lambda change: PARTS[part].from_config(config | change, f"{part}/config.json")  # noqa: E731
    read({})
    assert_refused(read, cases)


def test_no_weights_are_saved_beside_others(tmp_path):
    net, _, params = opened("clip")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"holds other weights \(pytorch_model.bin\)"):
        save_part(tmp_path, "text_encoder", net, params)
