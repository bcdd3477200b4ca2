"""Schedulers of diffusers as objectives and samplings: each key heeded, or refused."""

import pytest

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.pretrained.scheduler_config import scheduler_config, scheduler_of
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


def named(name, **config):
    return scheduler_of({"_class_name": f"{name}Scheduler"} | config)


def test_that_of_a_public_net():
    name, objective, sampling = scheduler_of(CAT)
    assert name == "DDPMScheduler"
    assert (objective.schedule, objective.beta_start, objective.beta_end, objective.target) == (
        "linear",
        1e-4,
        0.02,
        "eps",
    )
    assert (sampling.sampler, sampling.options) == ("ddpm", {"variance": "fixed_small"})
    assert (sampling.spacing, sampling.clip_x0, sampling.steps) == ("leading", True, None)


@pytest.mark.parametrize(
    ("name", "config", "sampler", "options"),
    [
        ("DDPM", {"variance_type": "fixed_small_log"}, "ddpm", {"variance": "fixed_small"}),
        ("DDIM", {}, "ddim", {"compat": True}),
        ("PNDM", {"skip_prk_steps": True}, "pndm", {"runge_kutta": False, "average": "eps", "compat": True}),
        ("PNDM", {"prediction_type": "v_prediction"}, "pndm", {"runge_kutta": True, "average": "v", "compat": True}),
        ("UniPCMultistep", {"solver_order": 3}, "unipc", {"order": 3, "B": "bh2", "compat": True}),
        ("DPMSolverMultistep", {"solver_order": 3}, "dpmpp_3m", {"compat": True}),
        ("DPMSolverMultistep", {"solver_order": 1}, "unipc", {"order": 1, "corrector": False, "compat": True}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {"compat": True}),
        ("DPMSolverSinglestep", {}, "dpmpp_2s", {"compat": True}),
        ("EulerDiscrete", {}, "euler", {"compat": True}),
        ("EulerAncestralDiscrete", {}, "euler_ancestral", {"compat": True}),
        ("HeunDiscrete", {}, "heun", {"compat": True}),
        ("DEISMultistep", {"solver_order": 3}, "deis", {"order": 3, "compat": True}),
        ("LMSDiscrete", {}, "lms", {"compat": True}),
    ],
)
def test_a_scheduler_is_the_sampler_that_walks_as_it_does(name, config, sampler, options):
    found = named(name, **config).sampling
    assert (found.sampler, found.options) == (sampler, options)


def test_a_learned_variance_is_drawn_with():
    found = named("DDPM", variance_type="learned_range")
    assert (found.objective.variance, found.sampling.options["variance"]) == ("learned_range", "learned_range")


def test_thresholds_of_at_most_1_are_a_limit():
    assert not named("UniPCMultistep").sampling.clip_x0
    clipped = named("UniPCMultistep", thresholding=True).sampling
    assert (clipped.clip_x0, clipped.dynamic_threshold) == (True, None)
    found = named("UniPCMultistep", thresholding=True, sample_max_value=100.0).sampling
    assert (found.dynamic_threshold, found.threshold_limit) == (0.995, 100.0)


def test_the_other_settings_are_heeded():
    found = named("DDIM", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    assert (found.objective.zero_terminal_snr, found.objective.target, found.sampling.spacing) == (
        True,
        "v",
        "trailing",
    )
    assert named("EulerDiscrete", use_karras_sigmas=True).sampling.spacing == "karras"
    assert named("DDPM", beta_schedule="squaredcos_cap_v2").objective.schedule == "squaredcos"
    assert named("HeunDiscrete").objective.beta_end == 0.012


def test_one_schedulers_json_is_read_as_anothers():
    said = {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    found = scheduler_of(said, "UniPCMultistepScheduler")
    assert (found.sampling.sampler, found.sampling.spacing) == ("unipc", "linspace")
    assert (found.objective.schedule, found.objective.beta_start) == ("scaled_linear", 0.00085)


@pytest.mark.parametrize("own", SCHEDULERS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_schedulers_json_is_read_as_any_others(own, name):
    """Whole, as diffusers writes it; what the net was trained for stays that of its own class."""
    whole = {"_class_name": own, **SCHEDULERS[own].defaults}
    if own == "DPMSolverSinglestepScheduler" != name and "lower_order_final" in SCHEDULERS[name].defaults:
        with pytest.raises(ValueError, match="lower_order_final False is not supported"):
            scheduler_of(whole, name)
        whole["lower_order_final"] = True
    found = scheduler_of(whole, name)
    plain = scheduler_of({"_class_name": own})
    assert found.objective == plain.objective
    assert found.sampling.sampler == scheduler_of({"_class_name": name}).sampling.sampler


def test_keys_passed_on_from_another_scheduler_say_nothing():
    """diffusers keeps them in the JSON of a scheduler that was made from another's."""
    passed_on = {"skip_prk_steps": True, "solver_order": 3, "use_karras_sigmas": True, "variance_type": "fixed_large"}
    assert named("DDIM", **passed_on) == named("DDIM")


def test_a_value_that_only_its_own_scheduler_knows_is_left_out():
    said = {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "solver_order": 3}
    assert scheduler_of(said, "DEISMultistepScheduler").sampling.options == {"order": 3, "compat": True}
    said = {"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}
    with pytest.raises(ValueError, match="solver_type 'heun' is not supported for DPMSolverSinglestep"):
        scheduler_of(said, "DPMSolverSinglestepScheduler")
    learned = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    assert scheduler_of(learned, "UniPCMultistepScheduler").objective.variance == "learned_range"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sampling_is_written_as_its_scheduler(name):
    for choice in SCHEDULERS[name].choices:
        for spacing in ("leading", "linspace"):
            said = {"timestep_spacing": spacing} if "timestep_spacing" in SCHEDULERS[name].defaults else {}
            found = scheduler_of({"_class_name": name, **choice, **said})
            again = scheduler_of(scheduler_config(found.objective, found.sampling))
            assert again[1:] == found[1:], choice


@pytest.mark.parametrize("objective", [{"target": "v", "zero_terminal_snr": True}, {"target": "x0"}])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_net_was_trained_for_is_kept_whoever_walks(name, objective):
    """Where the sampler's own scheduler has no key for it, or cannot step so, another one is written."""
    wanted = Objective(**objective)
    written = scheduler_config(wanted, scheduler_of({"_class_name": name}).sampling)
    assert scheduler_of(written).objective == wanted
    assert not (objective["target"] == "x0" and written["_class_name"].startswith(("PNDM", "EulerAncestral")))


def test_for_the_pipeline_only_what_it_can_call_is_written():
    called = {"DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"}
    for name in SCHEDULERS:
        sampling = scheduler_of({"_class_name": name}).sampling
        written = scheduler_config(Objective(), sampling, for_pipeline=True)["_class_name"]
        assert written == (name if name in called else "DDPMScheduler")


def test_thresholds_are_kept_where_ancestral_sampling_takes_the_place():
    for limit in (None, 2.0):
        sampling = Sampling(sampler="heun", dynamic_threshold=0.9, threshold_limit=limit)
        found = scheduler_of(scheduler_config(Objective(), sampling)).sampling
        assert (found.sampler, found.dynamic_threshold, found.threshold_limit) == ("ddpm", 0.9, limit)


@pytest.mark.parametrize(
    "config",
    [
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9, "clip_sample": False},
        {"steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400, "prediction_type": "sample"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
)
def test_what_it_says_beside_is_written_too(config):
    found = named("DDPM", **config)
    written = scheduler_config(found.objective, found.sampling)
    assert config.items() <= written.items()
    assert scheduler_of(written) == found


def test_a_sampler_that_diffusers_has_not_is_written_as_ancestral_sampling():
    objective = Objective(target="v")
    for sampling in (
        Sampling(sampler="edm", spacing="log_snr"),
        Sampling(options={"variance": "fixed_large", "clip_sample": 1.0}),
    ):
        written = scheduler_config(objective, sampling)
        assert (written["_class_name"], written["timestep_spacing"]) == ("DDPMScheduler", "trailing")
        assert written["variance_type"] == sampling.options.get("variance", "fixed_small")
        assert written["prediction_type"] == "v_prediction"


def test_more_timesteps_than_any_scheduler_has_are_refused():
    with pytest.raises(ValueError, match="no scheduler of diffusers can be written"):
        scheduler_config(Objective(timesteps=2**20 + 1), Sampling())


@pytest.mark.parametrize("settings", [{"target": "edm"}, {"schedule": "flow", "target": "flow"}])
def test_what_diffusers_nets_are_not_trained_for_is_not_written(settings):
    with pytest.raises(ValueError, match="diffusers has no"):
        scheduler_config(Objective(**settings), Sampling())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_key_is_passed_over(name):
    """A key that nobody knows, and each key that is known and not heeded, at another value than its default."""
    with pytest.raises(ValueError, match=r"says \['nonsense'\], which is not understood"):
        scheduler_of({"_class_name": name, "nonsense": 1})
    others = {bool: lambda v: not v, str: lambda v: v + "x", float: lambda v: 0.5, int: lambda v: v + 1}
    others |= {list: lambda v: [0], type(None): lambda v: [0.5]}
    plain = scheduler_of({"_class_name": name})
    for key, default in SCHEDULERS[name].defaults.items():
        try:
            found = scheduler_of({"_class_name": name, key: others[type(default)](default)})
        except ValueError:
            continue
        no_effect = key in ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "steps_offset")
        no_effect |= key == "thresholding" and plain.sampling.clip_x0
        no_effect |= key == "lower_order_final" and name == "DPMSolverSinglestepScheduler"  # of order 2 either way
        assert found != plain or no_effect, key


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("Nonsense", {}, "_class_name 'NonsenseScheduler' is not understood"),
        ("DDPM", {"trained_betas": [0.1]}, "trained_betas"),
        ("DDPM", {"steps_offset": -1}, "offset must not be negative"),
        ("DDPM", {"variance_type": "learned"}, "variance_type learned is not supported"),
        ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type 'fixed_large_log'"),
        ("DDPM", {"thresholding": True, "sample_max_value": 0.5}, "sample_max_value 0.5"),
        ("DDPM", {"predict_epsilon": False}, "predict_epsilon false"),
        ("DDPM", {"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000 is not within"),
        ("EulerDiscrete", {"use_karras_sigmas": True, "timestep_spacing": "leading"}, "use_karras_sigmas with"),
        ("DDPM", {"clip_sample_range": 2.0}, "clip_sample_range 2.0"),
        ("DDPM", {"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ("DDPM", {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ("DDPM", {"beta_start": 10**400}, "beta_start must be a number, not 1000"),
        ("DDPM", {"beta_start": float("nan")}, "beta_start must be a number, not nan"),
        ("DDPM", {"beta_start": 0.5, "beta_end": 0.1}, "0 < start <= end < 1"),
        ("DDPM", {"variance_type": ["fixed_small"]}, "variance_type must be a string"),
        ("DPMSolverMultistep", {"variance_type": ["learned"]}, "variance_type \\['learned'\\] is not understood"),
        ("DPMSolverMultistep", {"lambda_min_clipped": -5.1}, "lambda_min_clipped -5.1 is not supported"),
        ("UniPCMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas True"),
        ("DPMSolverMultistep", {"algorithm_type": "dpmsolver"}, "algorithm_type dpmsolver of solver_order 2"),
        ("DDPM", {"num_train_timesteps": "many"}, "num_train_timesteps must be a whole number"),
    ],
)
def test_what_is_not_supported_is_refused(name, config, message):
    with pytest.raises(ValueError, match=message):
        named(name, **config)
