"""State dicts of the ConvBlock U-Net: read whatever the modules are called, or refused."""

import jax
import numpy as np
import pytest
from helpers.conv_unet_files import MODEL, state_dict
from helpers.pretrained import Call, Global, pickled, save_bin, write_bin

from ddpm_jax.pretrained.conv_unet_weights import is_torch_file, load_conv_unet


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, MODEL.init(jax.random.key(0)))


def test_a_state_dict_is_read_as_the_network_that_wrote_it(params, tmp_path):
    save_bin(tmp_path / "CIFAR_model.pt", state_dict(params))
    spec, found = load_conv_unet(tmp_path / "CIFAR_model.pt")
    assert spec.model == MODEL
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_recipe_samples_as_the_project_does(params, tmp_path):
    save_bin(tmp_path / "model.pt", state_dict(params))
    spec, _ = load_conv_unet(tmp_path / "model.pt", image_size=64)
    assert spec.model.image_size == 64
    assert (spec.objective.schedule, spec.objective.timesteps) == ("linear", 1000)
    assert spec.sampling.options == {"variance": "fixed_large", "clip_sample": 1.0}
    assert not spec.sampling.clip_x0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc.0.seq1.1.running_mean": np.zeros(32)}, "has enc.0.seq1.1.running_mean"),
        ({"time.0.half_emb": 10000.0 ** (-np.arange(4) / 3)}, "has time.0.half_emb"),
        ({"enc.0.res.weight": None, "enc.0.res.bias": None}, "has 3 modules like a 1x1 conv"),
        ({"dec.0.emb.weight": np.zeros((32, 9))}, "dec.0.emb has the shapes"),
        ({"output.weight": np.zeros((3, 32, 5, 5))}, r"output has the shape \(3, 32, 5, 5\)"),
        ({"deconvs.0.weight": None, "deconvs.0.bias": None}, "and 0 transposed convolutions"),
        ({"enc.0.emb.weight": None}, "enc.0.emb has a bias and no weight"),
    ],
)
def test_another_network_is_refused_with_what_is_different(change, message, params, tmp_path):
    tensors = state_dict(params) | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_bin(tmp_path / "model.pt", {k: np.asarray(v, np.float32) for k, v in kept.items()})
    with pytest.raises(ValueError, match=message):
        load_conv_unet(tmp_path / "model.pt")


def test_a_pickled_module_is_refused_with_the_line_that_saves_its_state_dict(tmp_path):
    write_bin(tmp_path / "CIFAR_model.pt", pickled(Call(Global("unet", "UNet"))))
    line = r"torch\.save\(torch\.load\('CIFAR_model\.pt', weights_only=False\)\.state_dict\(\)"
    with pytest.raises(ValueError, match=rf"unet\.UNet.*{line}"):
        load_conv_unet(tmp_path / "CIFAR_model.pt")


def test_a_dict_of_more_than_weights_is_refused_with_the_remedy(tmp_path):
    write_bin(tmp_path / "model.pt", pickled({"epoch": 3}))
    with pytest.raises(ValueError, match=r"model\.pt is not .*save the state dict alone\.$"):
        load_conv_unet(tmp_path / "model.pt")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"^There is no file .*model\.pt: give the state dict"):
        load_conv_unet(tmp_path / "model.pt")


def test_a_name_with_the_suffix_of_torch_is_a_file_of_torch_unless_it_is_a_folder(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    names = ("a.pt", "b.pth", "c.bin", "folder.pt")
    assert [is_torch_file(str(tmp_path / name)) for name in names] == [True, True, False, False]
