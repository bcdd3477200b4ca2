"""The script of `make hub-check`, on small networks with numbers that PyTorch computed.

The numbers are slices of what diffusers computes for the folders that `save_stable_diffusion`
writes for `tiny_model`.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest
from helpers.text import tiny_model

from ddpm_jax.pretrained.stable_diffusion import save_stable_diffusion

pytestmark = pytest.mark.runs

PARITY = Path(__file__).parent / "parity"
BOUND = 1e-5
# fmt: off
UNET = (-.044539, -.323218, -.069386, -.568080, -.222888, -.155957, -.172354, -.237719)
INPAINTING_UNET = (-.228074, -.780850, -.521064, -.530800, .210292, .084342, -.102360, -.402666)
DECODED = (-.189750, -.191333, -.661840, .020098, -.322198, -.081087, -1.046234, -.135890)
RECONSTRUCTED = (-.249686, -.243642, .011809, -.267334, .118734, -.055742, -.248511, .791554)
ENCODED = (
    -1.836852, 2.406959, 1.801083, .108587, -.464037, -.214307, -.489834, -.095822, -.691447
)
# fmt: on


@pytest.fixture
def hub_check(monkeypatch):
    monkeypatch.syspath_prepend(str(PARITY))
    return importlib.import_module("hub_check")


def noise(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_each_part_is_compared_with_the_slice_of_diffusers_tests(hub_check):
    cases = [
        hub_check.Case("unet", 33, UNET, BOUND, 4),
        hub_check.Case("decode", 13, DECODED, BOUND),
        hub_check.Case("reconstruct", 33, RECONSTRUCTED, BOUND),
        hub_check.Case("encode", 33, ENCODED, BOUND),
    ]
    assert hub_check.check(tiny_model(), cases, noise) == 0
    inpainting = [hub_check.Case("unet", 33, INPAINTING_UNET, BOUND, 4)]
    assert hub_check.check(tiny_model(inpaints=True), inpainting, noise) == 0


def test_a_value_over_its_bound_ends_the_command_with_status_1(hub_check, monkeypatch, tmp_path):
    save_stable_diffusion(tiny_model(), tmp_path / "model")
    for shape in ((4, 4, 4, 4), (4, 77, 8)):
        np.save(tmp_path / hub_check.file_name(33, shape), noise(33, shape))
    cases = [
        hub_check.Case("unet", 33, UNET, BOUND, 4),
        hub_check.Case("unet", 33, (*UNET[:7], UNET[7] + 2e-5), BOUND, 4),
        hub_check.Case("unet", 33, (*UNET[:7], float("nan")), BOUND, 4),
    ]
    monkeypatch.setitem(hub_check.PUBLISHED, "CompVis/stable-diffusion-v1-4", cases)
    arguments = ["--folder", str(tmp_path / "model"), "--noise", str(tmp_path)]
    command = ["hub_check.py", "CompVis/stable-diffusion-v1-4", *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match=r"2 of 3 are over their bounds\."):
        hub_check.main()


def test_noise_files_have_the_names_of_the_dataset(hub_check):
    assert hub_check.file_name(33, (4, 77, 768)) == "gaussian_noise_s=33_shape=4_77_768.npy"
