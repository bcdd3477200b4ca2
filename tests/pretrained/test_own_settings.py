"""ddpm_jax.json: steps, guidance, classes and values survive an export and a hostile file."""

import json

import numpy as np
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.data.values import LEVELS, scaled_values
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.hub import OWN_SETTINGS
from ddpm_jax.pretrained.own_settings import OwnSettings, read_own_settings, write_own_settings

VALUES = scaled_values("deviation", [(1.5, 2.0), (280.0, 7.0)], np.dtype(np.float64))
SETTINGS = OwnSettings(
    steps=20, guidance_scale=2.5, label_dropout=0.1, classes=("cat", "dog"), values=VALUES
)


@pytest.mark.parametrize("settings", [SETTINGS, OwnSettings()], ids=["all", "none"])
def test_settings_survive_the_file(settings, tmp_path):
    write_own_settings(tmp_path, settings)
    assert read_own_settings(tmp_path) == settings


def test_a_folder_without_the_file_leaves_the_sampling_as_it_is(tmp_path):
    own = read_own_settings(tmp_path)
    assert own.values == LEVELS
    sampling = Sampling(sampler="ddim", steps=50, guidance_scale=7.5)
    assert own.applied(sampling) == sampling
    applied = SETTINGS.applied(sampling)
    assert (applied.sampler, applied.steps, applied.guidance_scale) == ("ddim", 20, 2.5)


def test_unusable_settings_are_refused(tmp_path):
    def read(content):
        (tmp_path / OWN_SETTINGS).write_text(json.dumps(content))
        read_own_settings(tmp_path)

    cases = [
        ({"steps": 0}, "unusable steps, 0: remove it"),
        ({"steps": True}, "unusable steps, True"),
        ({"steps": 10**12}, "unusable steps, 1000000000000"),
        ({"label_dropout": 1.0}, "unusable label_dropout, 1.0"),
        ({"guidance_scale": "high"}, "unusable guidance_scale, high"),
        ({"classes": [1, 2]}, r"unusable classes, \[1, 2\]"),
        ({"values": {"scaling": "range"}}, "settings are missing: .*values.centre"),
    ]
    assert_refused(read, cases)
