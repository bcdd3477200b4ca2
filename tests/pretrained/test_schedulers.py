"""Schedulers of diffusers as objectives and samplings: every key is used or refused."""

import jaxtyping
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.scheduler_config import find_scheduler, parse_scheduler
from ddpm_jax.pretrained.schedulers import SCHEDULERS

CAT = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
    "variance_type": "fixed_small",
}
"""scheduler_config.json of google/ddpm-cat-256."""


@pytest.fixture(autouse=True)
def without_type_checks(monkeypatch):
    """Turn off jaxtyping, so that the library itself must refuse wrong values."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def parse(name, **config):
    return parse_scheduler({"_class_name": f"{name}Scheduler"} | config)


def test_the_scheduler_of_a_public_model_is_read():
    name, objective, sampling = parse_scheduler(CAT)
    assert name == "DDPMScheduler"
    assert objective == Objective(schedule="linear", beta_start=1e-4, beta_end=0.02, target="eps")
    options = {"variance": "fixed_small"}
    assert sampling == Sampling(sampler="ddpm", options=options, spacing="leading", clip_x0=True)


COMPAT = {"compat": True}
PNDM = {"runge_kutta": False, "average": "eps"} | COMPAT
PNDM_OF_V = {"runge_kutta": True, "average": "v"} | COMPAT
SAMPLERS = [
    ("DDPM", {"variance_type": "fixed_small_log"}, "ddpm", {"variance": "fixed_small"}, "plain"),
    ("DDIM", {}, "ddim", {}, "strides"),
    ("PNDM", {"skip_prk_steps": True}, "pndm", PNDM, "strides_to_0"),
    ("PNDM", {"prediction_type": "v_prediction"}, "pndm", PNDM_OF_V, "strides_to_0"),
    ("UniPCMultistep", {"solver_order": 3}, "unipc", {"order": 3, "B": "bh2"} | COMPAT, "inner"),
    ("DPMSolverMultistep", {"solver_order": 3}, "dpmpp_3m", COMPAT, "inner"),
    ("DPMSolverMultistep", {}, "dpmpp_2m", COMPAT, "inner"),
    (
        "DPMSolverMultistep",
        {"solver_order": 1},
        "unipc",
        {"order": 1, "corrector": False} | COMPAT,
        "inner",
    ),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++"},
        "dpmpp_2m_sde",
        COMPAT,
        "inner",
    ),
    ("DPMSolverSinglestep", {}, "dpmpp_2s", COMPAT, "inner"),
    ("EulerDiscrete", {}, "euler", {}, "float"),
    ("EulerAncestralDiscrete", {}, "euler_ancestral", {}, "float"),
    ("HeunDiscrete", {}, "heun", COMPAT, "float"),
    ("DEISMultistep", {"solver_order": 3}, "deis", {"order": 3} | COMPAT, "inner_to_0"),
    ("LMSDiscrete", {}, "lms", COMPAT, "float"),
]


def test_each_scheduler_becomes_its_sampler_and_grid():
    for name, config, sampler, options, grid in SAMPLERS:
        sampling = parse(name, **config).sampling
        expected = (sampler, options, grid, name == "DDIM")
        parsed = (sampling.sampler, sampling.options, sampling.grid, sampling.keep_eps)
        assert parsed == expected, (name, config)
    assert {f"{name}Scheduler" for name, *_ in SAMPLERS} == set(SCHEDULERS)


def test_a_learned_variance_is_used_for_sampling():
    scheduler = parse("DDPM", variance_type="learned_range")
    assert scheduler.objective.variance == "learned_range"
    assert scheduler.sampling.options["variance"] == "learned_range"


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep"])
def test_a_learned_variance_is_read_by_the_solvers_that_leave_it_out(name):
    """They use the network's mean alone, as in diffusers."""
    scheduler = parse(name, variance_type="learned_range")
    assert scheduler.objective.variance == "learned_range"
    assert scheduler.sampling == parse(name).sampling


def test_a_threshold_of_at_most_1_is_a_clip():
    assert not parse("UniPCMultistep").sampling.clip_x0
    clipped = parse("UniPCMultistep", thresholding=True).sampling
    assert (clipped.clip_x0, clipped.dynamic_threshold) == (True, None)
    limited = parse("UniPCMultistep", thresholding=True, sample_max_value=100.0).sampling
    assert (limited.dynamic_threshold, limited.threshold_limit) == (0.995, 100.0)


def test_the_other_settings_are_read():
    v = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    ddim = parse("DDIM", **v, timestep_spacing="trailing")
    assert ddim.objective == Objective(target="v", zero_terminal_snr=True)
    assert ddim.sampling.spacing == "trailing"
    assert parse("EulerDiscrete", use_karras_sigmas=True).sampling.spacing == "karras"
    assert parse("DDPM", beta_schedule="squaredcos_cap_v2").objective.schedule == "squaredcos"
    assert parse("HeunDiscrete").objective.beta_end == 0.012


def test_a_json_can_be_read_as_that_of_another_scheduler():
    config = {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    scheduler = parse_scheduler(config, "UniPCMultistepScheduler")
    assert (scheduler.sampling.sampler, scheduler.sampling.spacing) == ("unipc", "linspace")
    expected = Objective(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert scheduler.objective == expected


def test_a_threshold_without_effect_is_written_as_what_it_does():
    """At most 1 is a clip to [-1, 1]; a million is no limit."""
    for limit, expected in ((1.0, (None, None, True)), (2e6, (0.9, None, True))):
        sampling = Sampling(sampler="ddim", dynamic_threshold=0.9, threshold_limit=limit)
        written = find_scheduler(Objective(), sampling)
        assert written["_class_name"] == "DDIMScheduler"
        parsed = parse_scheduler(written).sampling
        assert (parsed.dynamic_threshold, parsed.threshold_limit, parsed.clip_x0) == expected


def test_karras_timesteps_that_diffusers_cannot_walk_are_not_written():
    """On the cosine schedule its DPMSolverMultistep repeats timesteps, and fails."""
    sampling = Sampling(sampler="dpmpp_2m", spacing="karras")
    names = [
        find_scheduler(Objective(schedule=schedule), sampling)["_class_name"]
        for schedule in ("linear", "squaredcos")
    ]
    assert names == ["DPMSolverMultistepScheduler", "DDPMScheduler"]


def test_the_full_json_of_each_scheduler_can_be_read_as_that_of_each_other():
    """The objective stays that of the JSON's own class; sampler and grid are the other's."""
    plain = {name: parse_scheduler({"_class_name": name}) for name in SCHEDULERS}
    refused = []
    for own, spec in SCHEDULERS.items():
        for name in SCHEDULERS:
            config = {"_class_name": own, **spec.defaults}
            # DPMSolverSinglestep alone has lower_order_final false by default.
            has_key = "lower_order_final" in SCHEDULERS[name].defaults
            if own == "DPMSolverSinglestepScheduler" != name and has_key:
                refused.append((dict(config), name))
                config["lower_order_final"] = True
            try:
                scheduler = parse_scheduler(config, name)
            except ValueError as error:
                raise AssertionError(f"{own} as {name}: {error}") from error
            assert scheduler.objective == plain[own].objective, (own, name)
            assert scheduler.sampling.sampler == plain[name].sampling.sampler, (own, name)
            assert scheduler.sampling.grid == plain[name].sampling.grid, (own, name)
    message = "lower_order_final False is not supported"
    assert len(refused) == 3
    assert_refused(lambda case: parse_scheduler(*case), [(case, message) for case in refused])


def test_keys_of_other_schedulers_are_ignored():
    """diffusers keeps them in the JSON of a scheduler that was made from another's."""
    foreign = {"skip_prk_steps": True, "solver_order": 3, "use_karras_sigmas": True}
    assert parse("DDIM", **foreign, variance_type="fixed_large") == parse("DDIM")


def test_a_value_that_only_the_own_scheduler_knows_is_left_out():
    config = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "solver_order": 3}
    scheduler = parse_scheduler(config, "DEISMultistepScheduler")
    assert scheduler.sampling.options == {"order": 3, "compat": True}
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}
    message = "solver_type 'heun' is not supported for DPMSolverSinglestep"
    with pytest.raises(ValueError, match=message):
        parse_scheduler(config, "DPMSolverSinglestepScheduler")
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    scheduler = parse_scheduler(config, "UniPCMultistepScheduler")
    assert scheduler.objective.variance == "learned_range"


def test_a_written_scheduler_is_read_as_the_same_objective_and_sampling():
    for name, spec in SCHEDULERS.items():
        configs = [{"timestep_spacing": "leading", **choice} for choice in spec.choices]
        if "timestep_spacing" not in spec.defaults:
            configs = list(spec.choices)
        for config in (*configs, {"timestep_spacing": "linspace"}):
            first = parse_scheduler({"_class_name": name, **config})
            second = parse_scheduler(find_scheduler(first.objective, first.sampling))
            assert second[1:] == first[1:], (name, config)


def test_the_objective_is_kept_with_every_sampler():
    """If the sampler's own scheduler cannot hold the objective, another one is written."""
    for objective in (Objective(target="v", zero_terminal_snr=True), Objective(target="x0")):
        for name in SCHEDULERS:
            sampling = parse_scheduler({"_class_name": name}).sampling
            written = find_scheduler(objective, sampling)
            assert parse_scheduler(written).objective == objective, (objective, name)
            if objective.target == "x0":
                assert not written["_class_name"].startswith(("PNDM", "EulerAncestral")), name


def test_for_pipeline_writes_only_schedulers_that_the_pipeline_can_call():
    callable_schedulers = {
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
    }
    for name in SCHEDULERS:
        sampling = parse_scheduler({"_class_name": name}).sampling
        written = find_scheduler(Objective(), sampling, for_pipeline=True)["_class_name"]
        assert written == (name if name in callable_schedulers else "DDPMScheduler")


def test_thresholds_are_kept_if_ancestral_sampling_is_written_instead():
    for limit in (None, 2.0):
        sampling = Sampling(sampler="heun", dynamic_threshold=0.9, threshold_limit=limit)
        parsed = parse_scheduler(find_scheduler(Objective(), sampling)).sampling
        settings = (parsed.sampler, parsed.dynamic_threshold, parsed.threshold_limit)
        assert settings == ("ddpm", 0.9, limit)


def test_settings_other_than_the_sampler_are_written_too():
    for config in (
        {
            "thresholding": True,
            "sample_max_value": 1.5,
            "dynamic_thresholding_ratio": 0.9,
            "clip_sample": False,
        },
        {"steps_offset": 1},
        {
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 400,
            "prediction_type": "sample",
        },
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ):
        scheduler = parse("DDPM", **config)
        written = find_scheduler(scheduler.objective, scheduler.sampling)
        assert config.items() <= written.items(), config
        assert parse_scheduler(written) == scheduler, config


def test_a_sampler_unknown_to_diffusers_is_written_as_ancestral_sampling():
    for sampling in (
        Sampling(sampler="edm", spacing="log_snr"),
        Sampling(options={"variance": "fixed_large", "clip_sample": 1.0}),
    ):
        written = find_scheduler(Objective(target="v"), sampling)
        assert written["_class_name"] == "DDPMScheduler"
        assert written["timestep_spacing"] == "trailing"
        assert written["variance_type"] == sampling.options.get("variance", "fixed_small")
        assert written["prediction_type"] == "v_prediction"


def test_an_objective_unknown_to_diffusers_is_not_written():
    cases = [
        ({"timesteps": 2**20 + 1}, "No scheduler of diffusers fits"),
        ({"target": "edm"}, "target edm does not exist in diffusers"),
        ({"schedule": "flow", "target": "flow"}, "schedule flow does not exist in diffusers"),
        ({"variance": "learned", "loss_kind": "vlb"}, "variance learned does not exist"),
    ]
    assert_refused(lambda case: find_scheduler(Objective(**case), Sampling()), cases)


OTHER_VALUES = {
    bool: lambda value: not value,
    str: lambda value: value + "x",
    float: lambda value: 0.5,
    int: lambda value: value + 1,
    list: lambda value: [0],
    type(None): lambda value: [0.5],
}
NO_EFFECT = {"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "steps_offset"}


def test_no_key_is_ignored():
    """A key with another value than its default changes the result, or is refused."""
    for name, spec in SCHEDULERS.items():
        plain = parse_scheduler({"_class_name": name})
        effective = set()
        for key, default in spec.defaults.items():
            value = OTHER_VALUES[type(default)](default)
            try:
                scheduler = parse_scheduler({"_class_name": name, key: value})
            except ValueError:
                continue
            no_effect = key in NO_EFFECT
            no_effect |= key == "thresholding" and plain.sampling.clip_x0
            # DPMSolverSinglestep is of order 2 with either value.
            singlestep = name == "DPMSolverSinglestepScheduler"
            no_effect |= key == "lower_order_final" and singlestep
            assert scheduler != plain or no_effect, (name, key)
            if scheduler != plain:
                effective.add(key)
        assert {"num_train_timesteps", "beta_end"} <= effective, name


def test_an_unknown_key_is_refused_by_every_scheduler():
    message = r"unsupported keys: \['nonsense'\]"
    cases = [({"_class_name": name, "nonsense": 1}, message) for name in SCHEDULERS]
    assert_refused(parse_scheduler, cases)


UNSUPPORTED = [
    ("Nonsense", {}, "_class_name 'NonsenseScheduler' is not supported"),
    ("DDPM", {"trained_betas": [0.1]}, "trained_betas"),
    ("DDPM", {"steps_offset": -1}, "offset must be at least 0"),
    ("DDPM", {"variance_type": "learned"}, "variance_type learned is not supported"),
    ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type 'fixed_large_log'"),
    ("DDPM", {"thresholding": True, "sample_max_value": 0.5}, "sample_max_value 0.5"),
    ("DDPM", {"predict_epsilon": False}, "predict_epsilon false"),
    ("DDPM", {"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000 is not from 1 to"),
    ("DDPM", {"clip_sample_range": 2.0}, "clip_sample_range 2.0"),
    ("DDPM", {"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
    ("DDPM", {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
    ("DDPM", {"beta_start": 10**400}, "beta_start must be a number, not 1000"),
    ("DDPM", {"beta_start": float("nan")}, "beta_start must be a number, not nan"),
    ("DDPM", {"beta_start": 0.5, "beta_end": 0.1}, "0 < beta_start <= beta_end < 1"),
    ("DDPM", {"variance_type": ["fixed_small"]}, "variance_type must be a string"),
    ("DDPM", {"num_train_timesteps": "many"}, "num_train_timesteps must be a whole number"),
    (
        "EulerDiscrete",
        {"use_karras_sigmas": True, "timestep_spacing": "leading"},
        "use_karras_sigmas with",
    ),
    (
        "DPMSolverMultistep",
        {"variance_type": ["learned"]},
        r"variance_type \['learned'\] is not supported",
    ),
    ("DPMSolverSinglestep", {"variance_type": "learned"}, "only learned_range is"),
    (
        "DPMSolverMultistep",
        {"lambda_min_clipped": -5.1},
        "lambda_min_clipped -5.1 is not supported",
    ),
    ("UniPCMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "dpmsolver"},
        "algorithm_type dpmsolver with solver_order 2",
    ),
]


def test_unsupported_settings_are_refused():
    cases = [((name, config), message) for name, config, message in UNSUPPORTED]
    assert_refused(lambda case: parse(case[0], **case[1]), cases)
