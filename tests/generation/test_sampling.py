"""Sampling settings: refusals, overrides, and checks against an objective."""

import dataclasses

import jaxtyping
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import (
    Sampling,
    build_sampler,
    check_sampling,
    step_count,
    with_learned_variance,
)

SMALL = Objective(timesteps=20, beta_start=0.01, beta_end=0.6)
LEARNED = Objective(timesteps=20, variance="learned", loss_kind="hybrid")

INVALID = [
    ({"sampler": "nonsense"}, "Unknown sampler 'nonsense': choose one of .*ddpm"),
    (
        {"options": {"nonsense": 1.0}},
        "Sampler ddpm has no option 'nonsense'; it has: variance, clip_sample",
    ),
    ({"guidance_scale": -1.0}, "guidance_scale must be at least 0, not -1.0"),
    (
        {"guidance_interval": (9.0, 3.0)},
        "guidance_interval must be in ascending order, not 9.0 3.0",
    ),
    ({"guidance_rescale": 1.5}, r"guidance_rescale must be in \[0, 1\], not 1.5"),
    ({"guidance_rescale": -0.5}, r"guidance_rescale must be in \[0, 1\], not -0.5"),
    ({"guidance_interval": (3.0, 9.0)}, "need guidance: set guidance_scale too, or leave"),
    ({"dynamic_threshold": 0.0}, "dynamic_threshold must be above 0 and at most 1, not 0.0"),
    ({"threshold_limit": 2.0}, "threshold_limit needs a dynamic_threshold"),
    (
        {"threshold_limit": 0.5, "dynamic_threshold": 0.9},
        "threshold_limit must be at least 1",
    ),
    ({"offset": -1, "spacing": "leading"}, "offset must be at least 0, not -1"),
    ({"spacing": "nowhere"}, "Unknown spacing 'nowhere': choose one of trailing, "),
    ({"end": "nowhere"}, "Unknown end 'nowhere': choose one of clean, sigma_min"),
    ({"grid": "nowhere"}, "Unknown grid 'nowhere': choose one of plain, strides, .*float"),
]


def test_invalid_settings_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert_refused(lambda settings: Sampling(**settings), INVALID)


def test_guidance_of_a_recipe_is_turned_off_with_its_interval():
    recipe = Sampling(guidance_scale=2.0, guidance_interval=(3.0, 9.0))
    with pytest.raises(ValueError, match="recipe or a folder, set them to None"):
        recipe.override(guidance_scale=1.0)
    assert not recipe.override(guidance_scale=1.0, guidance_interval=None).guided


def test_the_number_of_steps_is_t_by_default():
    for settings, n in (
        ({}, 20),
        ({"steps": 1}, 1),
        ({"steps": 20}, 20),
        ({"steps": 50, "spacing": "karras"}, 50),
        ({"steps": 50, "spacing": "log_snr"}, 50),
        ({"timesteps": (19.0, 10.0, 4.0)}, 3),
    ):
        assert step_count(SMALL, Sampling(**settings)) == n, settings


def test_steps_and_timesteps_out_of_range_are_refused():
    timesteps = (10.0, 19.0), (20.0, 3.0), (5.0, 5.0), (3.0, -1.0)
    cases = [({"steps": n}, "between 1 and the schedule's T = 20") for n in (-1, 0, 21)]
    cases += [({"steps": 0, "spacing": "karras"}, "sampling steps must be at least 1, not 0")]
    message = r"timesteps must decrease strictly within 0\.\.19"
    cases += [({"timesteps": t}, message) for t in timesteps]
    assert_refused(lambda settings: step_count(SMALL, Sampling(**settings)), cases)


def test_a_sampling_that_does_not_fit_the_objective_is_refused():
    untrained = {"options": {"variance": "learned_range"}}
    outside = {"guidance_scale": 2.0, "guidance_interval": (20.0, 30.0)}
    learned = "Variance learned is valid only for steps from t to t - 1: "
    cases = [
        ((SMALL, {"steps": 21}), "between 1 and the schedule's T = 20"),
        ((SMALL, untrained), "was not trained for variance learned_range: use fixed_small"),
        ((SMALL, outside), r"contains none of the timesteps 0\.\.19"),
        ((LEARNED, {"steps": 10}), learned + r"take all 20 steps, not 10\."),
        ((LEARNED, {"spacing": "karras"}), learned + r"use spacing trailing, not karras\."),
    ]
    assert_refused(lambda case: check_sampling(case[0], Sampling(**case[1])), cases)
    for objective in (SMALL, LEARNED):
        check_sampling(objective, Sampling())
    check_sampling(LEARNED, Sampling(steps=10, options={"variance": "fixed_small"}))


def test_a_learned_variance_is_used_if_the_sampler_takes_one():
    fixed = Sampling(options={"variance": "fixed_small"})
    assert with_learned_variance(LEARNED, Sampling()).options == {"variance": "learned"}
    assert with_learned_variance(LEARNED, fixed) == fixed
    assert with_learned_variance(LEARNED, Sampling(sampler="ddim")).options == {}
    assert with_learned_variance(SMALL, Sampling()).options == {}


def test_another_sampler_starts_from_its_own_options_grid_and_end():
    pndm = Sampling(
        sampler="pndm",
        options={"compat": True},
        grid="strides_to_0",
        keep_eps=True,
        end="sigma_min",
        steps=5,
        spacing="leading",
        offset=1,
    )
    own = {"options": {}, "grid": "plain", "keep_eps": False, "end": None}
    assert pndm.override(sampler="ddim") == dataclasses.replace(pndm, sampler="ddim", **own)
    given = {"sampler": "ddim", "options": {"eta": 1.0}, "grid": "strides", "keep_eps": True}
    given |= {"end": "clean"}
    assert pndm.override(**given) == dataclasses.replace(pndm, **given)


def test_an_override_of_the_same_sampler_keeps_its_options():
    pndm = Sampling(sampler="pndm", options={"compat": True}, grid="strides_to_0", steps=5)
    for settings in (
        {"sampler": "pndm"},
        {"steps": 4},
        {"spacing": "leading"},
        {"timesteps": (9.0, 3.0)},
    ):
        assert pndm.override(**settings) == dataclasses.replace(pndm, **settings), settings


def test_steps_replace_the_timesteps_of_a_recipe():
    recipe = Sampling(timesteps=(19.0, 10.0, 4.0))
    assert recipe.override(steps=5) == Sampling(steps=5)
    assert recipe.override(spacing="leading") == Sampling(spacing="leading")
    assert recipe.override(guidance_scale=2.0).timesteps == recipe.timesteps
    both = recipe.override(steps=5, timesteps=(3.0, 1.0))
    assert both == Sampling(steps=5, timesteps=(3.0, 1.0))


def test_a_setting_that_does_not_exist_is_named():
    message = "Sampling has no setting 'num_inference_steps': choose one of sampler, options, steps"
    with pytest.raises(ValueError, match=message):
        Sampling().override(num_inference_steps=5)


def test_checking_a_sampling_opens_no_file_of_an_option(tmp_path):
    missing = str(tmp_path / "missing.npz")
    sampling = Sampling(sampler="dpm_solver_v3", options={"statistics": missing})
    check_sampling(SMALL, sampling)
    with pytest.raises(FileNotFoundError, match=r"missing\.npz does not exist: run python -m"):
        build_sampler(SMALL, sampling)


def test_a_grid_that_the_schedule_does_not_have_is_refused():
    cases = [
        (Sampling(grid="strides", spacing="karras", steps=5), "Grid strides takes equal strides"),
        (
            Sampling(grid="inner", spacing="linspace", steps=20),
            "Grid inner takes fewer than T = 20 steps, not 20",
        ),
        (
            Sampling(spacing="leading", steps=5, offset=8),
            "Offset 8 leads beyond the last timestep, 19",
        ),
    ]
    assert_refused(lambda sampling: check_sampling(SMALL, sampling), cases)
    check_sampling(SMALL, Sampling(spacing="leading", steps=5, offset=3))
    check_sampling(SMALL, Sampling(grid="inner", spacing="leading", offset=1))
    check_sampling(SMALL, Sampling(grid="strides", spacing="karras", timesteps=(9.0, 3.0)))


def test_overridden_settings_have_no_effect():
    assert Sampling(spacing="trailing", offset=3).leading_offset == 0
    assert Sampling(spacing="leading", offset=3).leading_offset == 3
    assert Sampling(grid="float", timesteps=(9.0, 3.0)).grid_kind == "plain"
    assert Sampling(grid="float").grid_kind == "float"
