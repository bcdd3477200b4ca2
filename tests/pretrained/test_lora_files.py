"""Read each form of LoRA files, refuse other kinds, and write peft's names."""

import json

import jax
import numpy as np
import pytest
from helpers.lora import DIALECTS, changes, random_pair, spell, write
from helpers.nets import CONV_UNET, UNET, by_path, draw, random_like
from helpers.refusals import assert_refused
from helpers.text import tiny_model
from safetensors import safe_open

from ddpm_jax.models import Network
from ddpm_jax.pretrained.lora_files import (
    NAME,
    PEFT_NAME,
    add_lora,
    load_lora,
    save_lora,
    split_parts,
    with_lora,
)
from ddpm_jax.pretrained.lora_settings import METADATA, PEFT_CONFIG
from ddpm_jax.pretrained.weight_names import state_dict_name, to_torch
from ddpm_jax.training.lora import Lora, init_lora, lora_shapes, merge_lora

MODEL = tiny_model()
NETS = {"unet": MODEL.unet, "text_encoder": MODEL.text_encoder}
PARAMS = {"unet": MODEL.unet_params, "text_encoder": MODEL.text_params}
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
Q = f"{ATTENTION}.to_q"


def weight_shapes(part):
    """{module: shape of its weight} of the layers that a LoRA may change, as in PyTorch."""
    net = NETS[part]
    return {
        state_dict_name(net, path).removesuffix(".weight"): to_torch(path, np.zeros(shape)).shape
        for path, shape in lora_shapes(net.shapes()).items()
    }


SHAPES = {part: weight_shapes(part) for part in NETS}


def pairs_of(*patterns, parts=("unet", "text_encoder"), rank=2):
    """Random matrices for the layers whose names contain a pattern; ranks rise by layer."""
    chosen = {}
    for part in parts:
        for module, shape in SHAPES[part].items():
            if any(pattern in module for pattern in patterns):
                chosen[part, module] = random_pair(module, shape, rank + len(chosen) % 2)
    return chosen


def weights(nets, params):
    """{(part, module): weight} in PyTorch's layout."""
    return {
        (part, state_dict_name(net, path).removesuffix(".weight")): to_torch(path, leaf)
        for part, net in nets.items()
        for path, leaf in by_path(params[part]).items()
        if path.endswith("kernel")
    }


def assert_changed_by(path, expected, scale=1.0):
    """Assert that a file adds these changes to the weights, and changes no others."""
    nets = {part: (NETS[part], PARAMS[part]) for part in NETS}
    before = weights(NETS, PARAMS)
    after = weights(NETS, add_lora(nets, path, scale))
    for key, weight in before.items():
        change = expected.get(key, np.zeros(weight.shape)).reshape(weight.shape)
        np.testing.assert_allclose(after[key] - weight, change, rtol=0, atol=1e-6, err_msg=str(key))
    assert set(expected) <= set(before)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_makes_the_same_change(dialect, tmp_path):
    """The old names of attention are for its layers alone."""
    patterns = [".attn1.", ".attn2.", "self_attn"]
    if dialect != "old diffusers":
        patterns += [".ff.net", ".proj_in", "mlp.fc1", "resnets.0.conv", "time_emb_proj"]
    pairs = pairs_of(*patterns)
    assert len(pairs) > 20
    path = write(tmp_path / "style.safetensors", spell(dialect, pairs))
    assert_changed_by(path, changes(pairs))


def test_a_scale_multiplies_the_change_and_files_add_up(tmp_path):
    pairs = pairs_of(".attn2.", "self_attn")
    path = write(tmp_path / "style.safetensors", spell("peft", pairs))
    assert_changed_by(path, changes(pairs, 0.3), 0.3)
    twice = with_lora(with_lora(MODEL, path, 0.3), path, -0.3)
    after = weights(NETS, {"unet": twice.unet_params, "text_encoder": twice.text_params})
    for key, weight in weights(NETS, PARAMS).items():
        np.testing.assert_allclose(after[key], weight, rtol=0, atol=1e-6)
    with_bfloat16 = with_lora(MODEL._replace(unet_params=in_bfloat16(PARAMS["unet"])), path)
    assert {str(leaf.dtype) for leaf in by_path(with_bfloat16.unet_params).values()} == {"bfloat16"}


def in_bfloat16(params):
    return jax.tree.map(lambda x: x.astype("bfloat16"), params)


def metadata(**settings):
    return {METADATA: json.dumps({f"unet.{key}": value for key, value in settings.items()})}


@pytest.mark.parametrize(
    ("dialect", "alpha", "settings", "scale"),
    [
        ("kohya", 1.0, {}, 1 / 4),
        ("kohya", 1, {}, 1 / 4),
        ("peft", None, {}, 1.0),
        ("peft", None, {"r": 4, "lora_alpha": 8}, 2.0),
        ("peft", None, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ("peft", None, {"r": 4, "lora_alpha": 8, "alpha_pattern": {f"^{Q}$": 1}}, 1 / 4),
        ("peft", None, {"r": 9, "lora_alpha": 4, "rank_pattern": {"attn1.to_q": 4}}, 1.0),
        ("peft", None, {"lora_alpha": 8, "alpha_pattern": {r"down_blocks\.\d.*to_q": 1}}, 1 / 4),
        ("peft", None, {"lora_alpha": 8, "alpha_pattern": {"attn1.*": 1, "to_q": 2}}, 1 / 4),
        ("peft", None, {"lora_alpha": 8, "alpha_pattern": {"^attn1.to_q": 1, "o_q": 1}}, 2.0),
        ("peft", 2.0, {"r": 4, "lora_alpha": 8}, 1 / 2),
        ("bare", None, {}, 1.0),
    ],
)
def test_alpha_is_the_layers_tensor_else_the_metadatas_else_the_rank(
    dialect, alpha, settings, scale, tmp_path
):
    pairs = {("unet", Q): random_pair(Q, SHAPES["unet"][Q], 4)}
    noted = metadata(**settings) if settings else {}
    path = write(tmp_path / "style.safetensors", spell(dialect, pairs, alpha), **noted)
    assert_changed_by(path, changes(pairs, scale))


def test_layers_without_an_alpha_take_their_rank(tmp_path):
    q = ("unet", Q)
    pairs = {q: random_pair(Q, SHAPES["unet"][Q], 4), **pairs_of("attn1.to_k", parts=("unet",))}
    tensors = spell("kohya", pairs) | spell("kohya", {q: pairs[q]}, 1.0)
    path = write(tmp_path / "style.safetensors", tensors)
    assert_changed_by(path, changes(pairs) | changes({q: pairs[q]}, 1 / 4))


def test_names_of_metadata_without_a_part_are_those_of_the_unet(tmp_path):
    """diffusers' save_lora_adapter writes them."""
    pairs = {("unet", Q): random_pair(Q, SHAPES["unet"][Q], 4)}
    text = json.dumps({"r": 4, "lora_alpha": 2})
    path = write(tmp_path / "style.safetensors", spell("bare", pairs), **{METADATA: text})
    assert_changed_by(path, changes(pairs, 1 / 2))


def save_as_peft(folder, pairs, **settings):
    """The folder that peft's `save_pretrained` writes for one network."""
    folder.mkdir(exist_ok=True)
    tensors = {f"base_model.model.{module}": pair for (_, module), pair in pairs.items()}
    named = {
        f"{name}.lora_{letter}.weight": matrix
        for name, pair in tensors.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    if settings:
        (folder / PEFT_CONFIG).write_text(json.dumps({"peft_type": "LORA", **settings}))
    return write(folder / PEFT_NAME, named)


@pytest.mark.parametrize("part", NETS)
def test_a_folder_that_peft_saved_has_its_settings_beside_the_file(part, tmp_path):
    pairs = pairs_of(".attn1.", ".ff.net", "self_attn", parts=(part,), rank=4)
    ranks = {key: len(pair[0]) for key, pair in pairs.items()}
    settings = {"rank_pattern": {module: rank for (_, module), rank in ranks.items()}}
    save_as_peft(tmp_path, pairs, r=9, lora_alpha=8, use_rslora=True, **settings)
    expected = {}
    for key, pair in pairs.items():
        expected |= changes({key: pair}, 8 / np.sqrt(ranks[key]))
    assert_changed_by(tmp_path, expected)


def test_a_file_of_peft_without_its_settings_is_refused(tmp_path):
    file = save_as_peft(tmp_path, pairs_of(".attn1."))
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        load_lora(file, NETS)


def test_patterns_from_a_file_are_matched_in_linear_time(tmp_path):
    """Python's `re` would take hours for this one."""
    pairs = pairs_of("attn1.to_q", parts=("unet",))
    patterns = {f"{'(.*)*' * 20}x": 7, Q: 2}
    noted = metadata(lora_alpha=5, alpha_pattern=patterns)
    path = write(tmp_path / "style.safetensors", spell("peft", pairs), **noted)
    lora = load_lora(path, NETS)["unet"]
    assert len(lora) == len(pairs)


def test_a_1x1_convolution_may_be_a_matrix(tmp_path):
    module = "down_blocks.0.attentions.0.proj_in"
    a, b = random_pair(module, SHAPES["unet"][module], 2)
    assert a.ndim == 4
    flat = {("unet", module): (a[..., 0, 0], b[..., 0, 0])}
    path = write(tmp_path / "style.safetensors", spell("kohya", flat))
    assert_changed_by(path, changes({("unet", module): (a, b)}))


def test_a_folder_holds_the_file_of_diffusers_name(tmp_path):
    pairs = pairs_of(".attn1.")
    write(tmp_path / NAME, spell("peft", pairs))
    assert_changed_by(tmp_path, changes(pairs))


@pytest.mark.parametrize("net", [CONV_UNET, UNET], ids=["conv_unet", "unet"])
def test_a_saved_lora_is_loaded_again(net, tmp_path):
    """Of any network, in peft's dialect, which also says rank and alpha."""
    settings = Lora(rank=3, alpha=6.0, targets=("linear", "conv", "attention"))
    _, params = draw(net)
    lora = random_like(init_lora(jax.random.key(0), params, settings))
    path = tmp_path / "folder" / "style.safetensors"
    save_lora(path, {"unet": lora}, {"unet": net}, settings)
    loaded = load_lora(path, {"unet": net})["unet"]
    for name, (a, b) in lora.items():
        np.testing.assert_array_equal(loaded[name][0], a)
        np.testing.assert_allclose(loaded[name][1], 2 * b, rtol=1e-6)
    with safe_open(path, framework="numpy") as file:
        noted = json.loads(file.metadata()[METADATA])
        names = {name.partition(".lora_")[0].removeprefix("unet.") for name in file.keys()}  # noqa: SIM118
    assert noted["unet.r"] == 3
    assert noted["unet.lora_alpha"] == 6.0
    assert set(noted["unet.target_modules"]) == names
    with pytest.raises(ValueError, match="is for another network"):
        load_lora(path, NETS)


class Both(Network):
    """A network of two parts, trained together."""

    unet = MODEL.unet
    text_encoder = MODEL.text_encoder


def test_the_lora_of_a_network_with_a_text_encoder_is_saved_by_parts(tmp_path):
    settings = Lora(rank=2)
    lora = random_like(init_lora(jax.random.key(0), PARAMS, settings))
    path = tmp_path / "style.safetensors"
    save_lora(path, *split_parts(Both(), lora), settings)
    merged = with_lora(MODEL, path)
    expected = merge_lora(PARAMS, lora)
    jax.tree.map(np.testing.assert_array_equal, merged.unet_params, expected["unet"])
    jax.tree.map(np.testing.assert_array_equal, merged.text_params, expected["text_encoder"])


def test_other_kinds_and_other_networks_end_in_one_line(tmp_path):
    shape = SHAPES["unet"][Q]
    a, b = random_pair(Q, shape, 4)
    q = f"unet.{Q}"
    plain = spell("peft", {("unet", Q): (a, b)})
    bias = np.zeros(8, np.float32)

    def load(case):
        tensors, settings = case
        noted = metadata(**settings) if settings else {}
        load_lora(write(tmp_path / "style.safetensors", tensors, **noted), NETS)

    assert_refused(load, [
        ((plain | {f"{q}.lora_magnitude_vector": bias}, {}), "is a DoRA: it has unet.down"),
        ((plain | {"lora_unet_x.dora_scale": bias}, {}), "is a DoRA"),
        ((plain | {f"{q}.lora_B.bias": bias}, {}), "is a LoRA with biases"),
        (({f"{q}.hada_w1_a": a}, {}), "is a LoHa"),
        (({f"{q}.lokr_w1": a}, {}), "is a LoKr"),
        (({"conv_in.weight": a}, {}), "is no LoRA that can be read: it has conv_in.weight"),
        (({}, {}), "holds no tensor"),
        (({f"{q}.lora_A.weight": a}, {}), "to_q has no B"),
        (({f"{q}.alpha": bias}, {}), "to_q has no A and no B"),
        ((spell("peft", {("unet", "mid_block.q"): (a, b)}) | plain, {}),
         r"another network: this one has no layer for 1 of its 2 \(unet.mid_block.q\)"),
        ((spell("kohya", {("text_encoder", "q"): (a, b)}), {}), r"its 1 \(lora_te_q\)"),
        ((spell("peft", {("unet", Q): (a[:2], b)}), {}), r"A and B of .*to_q cannot be multiplied"),
        ((spell("peft", {("unet", Q): (a[:0], b[:, :0])}, 1.0), {}), r"A and B of .*to_q are empt"),
        ((spell("peft", {("unet", Q): (a[:, :3], b)}), {}), r"1 of its 1 .*to_q as \(8, 3\), not"),
        ((plain | spell("kohya", {("unet", Q): (a, b)}), {}), "a layer under two names"),
        ((plain, {"r": 8, "lora_alpha": 8}), "rank of .*to_q is 4 by its shape and 8 by its"),
        ((plain, {"r": 4, "lora_alpha": "x"}), "alpha of .*to_q is x, not a number"),
        ((spell("peft", {("unet", Q): (a, b)}, np.nan), {}), "is nan, not a number"),
        ((plain | {f"{q}.alpha": bias}, {}), "alpha of .*to_q is no number"),
        ((plain, {"use_dora": True}), "is a DoRA, says its lora_adapter_metadata"),
        ((plain, {"peft_type": "LOHA"}), "is a LOHA, says its"),
        ((plain, {"lora_bias": True}), "is a LoRA with biases, says its"),
        ((plain, {"init_lora_weights": "pissa_niter_4"}), "whose weights pissa_niter_4 changed"),
        ((plain, {"alpha_pattern": {"(?=x)": 1}}), r"alpha_pattern in .* has '\(\?=x\)', which ca"),
        ((plain, {"rank_pattern": [1]}), r"rank_pattern in .* must be an object"),
    ])  # fmt: skip
    (tmp_path / "bad.safetensors").write_bytes(b"no file")
    write(tmp_path / "json.safetensors", plain, **{METADATA: "[" * 10_000})
    assert_refused(lambda name: load_lora(tmp_path / name, NETS), [
        ("bad.safetensors", "is not a complete safetensors file|has a header of"),
        ("json.safetensors", "is not valid JSON"),
    ])  # fmt: skip
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="is the directory of a run: export its LoRA by"):
        load_lora(tmp_path / "run", NETS)
    with pytest.raises(FileNotFoundError, match=r"There is no LoRA file .*none.safetensors"):
        load_lora(tmp_path / "none.safetensors", NETS)


def test_a_part_that_no_lora_has_is_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown part 'net': choose one of unet, text_encoder"):
        load_lora(tmp_path / "a.safetensors", {"net": UNET})


def test_the_file_of_a_text_encoder_does_not_fit_a_network_of_pixels(tmp_path):
    path = write(tmp_path / "style.safetensors", spell("peft", pairs_of("self_attn")))
    with pytest.raises(ValueError, match=r"no layer for \d+ of its \d+ \(text_encoder\."):
        load_lora(path, {"unet": UNET})
