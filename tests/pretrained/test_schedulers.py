"""Schedulers of diffusers as objectives and samplings: each key is used, or refused."""

import jaxtyping
import pytest
from helpers.refusals import assert_refused

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.scheduler_config import parse_scheduler, scheduler_config
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
def without_checks_of_types(monkeypatch):
    """As users run it: values are refused by the library, not by the type checks of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def named(name, **config):
    return parse_scheduler({"_class_name": f"{name}Scheduler"} | config)


def test_the_scheduler_of_a_public_net_is_read():
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


def test_a_scheduler_is_the_sampler_and_the_grid_that_walk_as_it_does():
    for name, config, sampler, options, grid in SAMPLERS:
        found = named(name, **config).sampling
        expected = (sampler, options, grid, name == "DDIM")
        read = (found.sampler, found.options, found.grid, found.keep_eps)
        assert read == expected, (name, config)
    assert {f"{name}Scheduler" for name, *_ in SAMPLERS} == set(SCHEDULERS)


def test_a_learned_variance_is_drawn_with():
    found = named("DDPM", variance_type="learned_range")
    assert found.objective.variance == "learned_range"
    assert found.sampling.options["variance"] == "learned_range"


def test_a_threshold_of_at_most_1_is_a_clip():
    assert not named("UniPCMultistep").sampling.clip_x0
    clipped = named("UniPCMultistep", thresholding=True).sampling
    assert (clipped.clip_x0, clipped.dynamic_threshold) == (True, None)
    found = named("UniPCMultistep", thresholding=True, sample_max_value=100.0).sampling
    assert (found.dynamic_threshold, found.threshold_limit) == (0.995, 100.0)


def test_the_other_settings_are_read():
    v = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    found = named("DDIM", **v, timestep_spacing="trailing")
    assert found.objective == Objective(target="v", zero_terminal_snr=True)
    assert found.sampling.spacing == "trailing"
    assert named("EulerDiscrete", use_karras_sigmas=True).sampling.spacing == "karras"
    assert named("DDPM", beta_schedule="squaredcos_cap_v2").objective.schedule == "squaredcos"
    assert named("HeunDiscrete").objective.beta_end == 0.012


def test_the_json_of_one_scheduler_is_read_as_that_of_another():
    said = {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    found = parse_scheduler(said, "UniPCMultistepScheduler")
    assert (found.sampling.sampler, found.sampling.spacing) == ("unipc", "linspace")
    expected = Objective(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert found.objective == expected


def test_the_json_of_any_scheduler_is_read_as_that_of_any_other():
    """Whole, as diffusers writes it; what the net was trained for stays that of its own class."""
    plain = {name: parse_scheduler({"_class_name": name}) for name in SCHEDULERS}
    refused = []
    for own, kind in SCHEDULERS.items():
        for name in SCHEDULERS:
            whole = {"_class_name": own, **kind.defaults}
            keeps_order = "lower_order_final" in SCHEDULERS[name].defaults
            if own == "DPMSolverSinglestepScheduler" != name and keeps_order:
                refused.append((dict(whole), name))
                whole["lower_order_final"] = True
            try:
                found = parse_scheduler(whole, name)
            except ValueError as error:
                raise AssertionError(f"{own} as {name}: {error}") from error
            assert found.objective == plain[own].objective, (own, name)
            assert found.sampling.sampler == plain[name].sampling.sampler, (own, name)
            assert found.sampling.grid == plain[name].sampling.grid, (own, name)
    message = "lower_order_final False is not supported"
    assert len(refused) == 3
    assert_refused(lambda case: parse_scheduler(*case), [(case, message) for case in refused])


def test_keys_passed_on_from_another_scheduler_are_ignored():
    """diffusers keeps them in the JSON of a scheduler that was made from another's."""
    passed_on = {"skip_prk_steps": True, "solver_order": 3, "use_karras_sigmas": True}
    assert named("DDIM", **passed_on, variance_type="fixed_large") == named("DDIM")


def test_a_value_that_only_its_own_scheduler_knows_is_left_out():
    said = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "solver_order": 3}
    found = parse_scheduler(said, "DEISMultistepScheduler")
    assert found.sampling.options == {"order": 3, "compat": True}
    said = {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}
    message = "solver_type 'heun' is not supported for DPMSolverSinglestep"
    with pytest.raises(ValueError, match=message):
        parse_scheduler(said, "DPMSolverSinglestepScheduler")
    learned = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    found = parse_scheduler(learned, "UniPCMultistepScheduler")
    assert found.objective.variance == "learned_range"


def test_a_sampling_is_written_as_its_scheduler():
    for name, kind in SCHEDULERS.items():
        said = [{"timestep_spacing": "leading", **choice} for choice in kind.choices]
        if "timestep_spacing" not in kind.defaults:
            said = list(kind.choices)
        for config in (*said, {"timestep_spacing": "linspace"}):
            found = parse_scheduler({"_class_name": name, **config})
            again = parse_scheduler(scheduler_config(found.objective, found.sampling))
            assert again[1:] == found[1:], (name, config)


def test_what_a_net_was_trained_for_is_kept_by_every_sampler():
    """Another scheduler is written if the sampler's own has no key for it or cannot step so."""
    for wanted in (Objective(target="v", zero_terminal_snr=True), Objective(target="x0")):
        for name in SCHEDULERS:
            written = scheduler_config(wanted, parse_scheduler({"_class_name": name}).sampling)
            assert parse_scheduler(written).objective == wanted, (wanted, name)
            if wanted.target == "x0":
                assert not written["_class_name"].startswith(("PNDM", "EulerAncestral")), name


def test_for_the_pipeline_only_what_it_can_call_is_written():
    called = {
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
    }
    for name in SCHEDULERS:
        sampling = parse_scheduler({"_class_name": name}).sampling
        written = scheduler_config(Objective(), sampling, for_pipeline=True)["_class_name"]
        assert written == (name if name in called else "DDPMScheduler")


def test_thresholds_are_kept_if_ancestral_sampling_is_written_instead():
    for limit in (None, 2.0):
        sampling = Sampling(sampler="heun", dynamic_threshold=0.9, threshold_limit=limit)
        found = parse_scheduler(scheduler_config(Objective(), sampling)).sampling
        read = (found.sampler, found.dynamic_threshold, found.threshold_limit)
        assert read == ("ddpm", 0.9, limit)


def test_settings_beside_the_sampler_are_written_too():
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
        found = named("DDPM", **config)
        written = scheduler_config(found.objective, found.sampling)
        assert config.items() <= written.items(), config
        assert parse_scheduler(written) == found, config


def test_a_sampler_that_diffusers_has_not_is_written_as_ancestral_sampling():
    for sampling in (
        Sampling(sampler="edm", spacing="log_snr"),
        Sampling(options={"variance": "fixed_large", "clip_sample": 1.0}),
    ):
        written = scheduler_config(Objective(target="v"), sampling)
        assert written["_class_name"] == "DDPMScheduler"
        assert written["timestep_spacing"] == "trailing"
        assert written["variance_type"] == sampling.options.get("variance", "fixed_small")
        assert written["prediction_type"] == "v_prediction"


def test_an_objective_that_diffusers_has_not_is_not_written():
    cases = [
        ({"timesteps": 2**20 + 1}, "no scheduler of diffusers can be written"),
        ({"target": "edm"}, "diffusers has no edm"),
        ({"schedule": "flow", "target": "flow"}, "diffusers has no flow"),
        ({"variance": "learned", "loss_kind": "vlb"}, "no log variance that is learned"),
    ]
    assert_refused(lambda case: scheduler_config(Objective(**case), Sampling()), cases)


OTHERS = {
    bool: lambda value: not value,
    str: lambda value: value + "x",
    float: lambda value: 0.5,
    int: lambda value: value + 1,
    list: lambda value: [0],
    type(None): lambda value: [0.5],
}
NO_EFFECT = {"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "steps_offset"}


def test_no_key_is_ignored():
    """Each key at another value than its default changes what is read, or is refused."""
    for name, kind in SCHEDULERS.items():
        plain = parse_scheduler({"_class_name": name})
        changed = set()
        for key, default in kind.defaults.items():
            other = OTHERS[type(default)](default)
            try:
                found = parse_scheduler({"_class_name": name, key: other})
            except ValueError:
                continue
            no_effect = key in NO_EFFECT
            no_effect |= key == "thresholding" and plain.sampling.clip_x0
            # It is of order 2 either way.
            singlestep = name == "DPMSolverSinglestepScheduler"
            no_effect |= key == "lower_order_final" and singlestep
            assert found != plain or no_effect, (name, key)
            changed |= {key} if found != plain else set()
        assert {"num_train_timesteps", "beta_end"} <= changed, name


def test_an_unknown_key_is_refused_by_every_scheduler():
    message = r"says \['nonsense'\], which is not understood"
    cases = [({"_class_name": name, "nonsense": 1}, message) for name in SCHEDULERS]
    assert_refused(parse_scheduler, cases)


UNSUPPORTED = [
    ("Nonsense", {}, "_class_name 'NonsenseScheduler' is not understood"),
    ("DDPM", {"trained_betas": [0.1]}, "trained_betas"),
    ("DDPM", {"steps_offset": -1}, "offset must not be negative"),
    ("DDPM", {"variance_type": "learned"}, "variance_type learned is not supported"),
    ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type 'fixed_large_log'"),
    ("DDPM", {"thresholding": True, "sample_max_value": 0.5}, "sample_max_value 0.5"),
    ("DDPM", {"predict_epsilon": False}, "predict_epsilon false"),
    ("DDPM", {"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000 is not within"),
    ("DDPM", {"clip_sample_range": 2.0}, "clip_sample_range 2.0"),
    ("DDPM", {"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
    ("DDPM", {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
    ("DDPM", {"beta_start": 10**400}, "beta_start must be a number, not 1000"),
    ("DDPM", {"beta_start": float("nan")}, "beta_start must be a number, not nan"),
    ("DDPM", {"beta_start": 0.5, "beta_end": 0.1}, "0 < start <= end < 1"),
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
        r"variance_type \['learned'\] is not understood",
    ),
    (
        "DPMSolverMultistep",
        {"lambda_min_clipped": -5.1},
        "lambda_min_clipped -5.1 is not supported",
    ),
    ("UniPCMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "dpmsolver"},
        "algorithm_type dpmsolver of solver_order 2",
    ),
]


def test_unsupported_settings_are_refused():
    cases = [((name, config), message) for name, config, message in UNSUPPORTED]
    assert_refused(lambda case: named(case[0], **case[1]), cases)
