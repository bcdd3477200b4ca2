"""ddpm_jax.json: steps, guidance, classes and values survive an export and a hostile file."""

import json

import jaxtyping
import numpy as np
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.data.values import LEVELS, scaled_values
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.hub import OWN_SETTINGS
from ddpm_jax.pretrained.own_settings import OwnSettings, read_own_settings, write_own_settings
from ddpm_jax.settings_json import to_json

VALUES = scaled_values("deviation", [(1.5, 2.0), (280.0, 7.0)], np.dtype(np.float64))
SETTINGS = OwnSettings(
    steps=20, guidance_scale=2.5, label_dropout=0.1, classes=("cat", "dog"), values=VALUES
)


SAMPLING = Sampling(sampler="heun", timesteps=(999.0, 500.0, 3.5), dynamic_threshold=0.9)


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, OwnSettings(), OwnSettings(sampling=SAMPLING)],
    ids=["all", "none", "sampling"],
)
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
    assert OwnSettings(sampling=SAMPLING, steps=7).applied(sampling) == SAMPLING


def test_unusable_settings_are_refused(tmp_path, monkeypatch):
    # The type check that is on in tests would refuse some of them earlier.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def read(content):
        (tmp_path / OWN_SETTINGS).write_text(json.dumps(content))
        read_own_settings(tmp_path)

    cases = [
        ({"steps": 0}, "unusable steps, 0: remove it"),
        ({"steps": True}, "unusable steps, True"),
        ({"sampling": {"sampler": "none"}}, "Unknown sampler 'none'"),
        ({"sampling": to_json(Sampling(steps=10**12))}, "unusable number of steps"),
        (
            {"sampling": to_json(Sampling(sampler="dpm_solver_v3", options={"statistics": "x"}))},
            "unusable option, statistics: remove it",
        ),
        ({"steps": 10**12}, "unusable steps, 1000000000000"),
        ({"values": to_json(VALUES) | {"dtype": "flot32"}}, "values do not fit"),
        ({"values": to_json(VALUES) | {"scaling": "max"}}, "scaling"),
        ({"values": to_json(VALUES) | {"spread": [0.0, 1.0]}}, "spread no 0"),
        ({"values": to_json(VALUES) | {"centre": [1.0]}}, "a finite number for each channel"),
        ({"label_dropout": 1.0}, "unusable label_dropout, 1.0"),
        ({"guidance_scale": "high"}, "unusable guidance_scale, high"),
        ({"classes": [1, 2]}, r"unusable classes, \[1, 2\]"),
        ({"values": {"scaling": "range"}}, "settings are missing: .*values.centre"),
    ]
    assert_refused(read, cases)
