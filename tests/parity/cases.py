"""Settings of diffusers' schedulers with which `samplers.py` compares our samplers."""

from typing import NamedTuple


class Case(NamedTuple):
    """A scheduler of diffusers with its settings."""

    scheduler: str
    config: dict = {}  # noqa: RUF012
    """Settings in its JSON."""
    step: dict = {}  # noqa: RUF012
    """Arguments of its `step`."""
    bound: float | None = 1e-4
    """Largest difference that passes; None if diffusers is not a reference here."""
    note: str = ""
    read_as: str | None = None
    """The scheduler that reads its JSON; None for itself."""

    @property
    def zero_terminal_snr(self):
        """Whether the last timestep is pure noise."""
        return self.config.get("rescale_betas_zero_snr", False)

    @property
    def learns_variance(self):
        """Whether the network has an output for the variance."""
        return self.config.get("variance_type") == "learned_range"


SPACINGS = ("leading", "trailing", "linspace")
SPACED = [{"timestep_spacing": spacing} for spacing in SPACINGS]
OFFSET = {"timestep_spacing": "leading", "steps_offset": 1}
ZERO = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
ZERO_NOTE = "the network assumes pure noise at T-1"
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9}


def ddpm_cases():
    for spacing in SPACED:
        for variance in ("fixed_small", "fixed_large"):
            for clip in (True, False):
                case = Case("DDPM", {**spacing, "variance_type": variance, "clip_sample": clip})
                if spacing["timestep_spacing"] == "trailing" and variance == "fixed_large":
                    note = "diffusers leaves noise on the last image"
                    case = case._replace(bound=None, note=note)
                yield case
    for clip in (True, False):
        yield Case("DDPM", {"variance_type": "learned_range", "clip_sample": clip})
    for maximum in (1.0, 1.5, 100.0):
        yield Case("DDPM", {**THRESHOLD, "sample_max_value": maximum, "clip_sample": False})
    yield Case("DDPM", {**OFFSET, "variance_type": "fixed_small_log"})
    for schedule in ("scaled_linear", "squaredcos_cap_v2", "sigmoid"):
        yield Case("DDPM", {"beta_schedule": schedule})
    yield Case("DDPM", {"prediction_type": "sample"})


def ddim_cases():
    yield Case("DDIM", {**ZERO, "clip_sample": False}, note="zero terminal SNR")
    for spacing in SPACED:
        for eta in (0.0, 0.5, 1.0):
            for clip in (True, False):
                yield Case("DDIM", {**spacing, "clip_sample": clip}, {"eta": eta})
    for config in (OFFSET, {"set_alpha_to_one": False}, {**OFFSET, "set_alpha_to_one": False}):
        yield Case("DDIM", {**config, "clip_sample": False})


def pndm_cases():
    note = "both sum large multiples of eps in float32"
    for skip in (False, True):
        for to_one in (False, True):
            config = {"skip_prk_steps": skip, "set_alpha_to_one": to_one}
            yield Case("PNDM", config, bound=5e-4, note=note)
    yield Case("PNDM", {**OFFSET, "skip_prk_steps": True}, bound=5e-4)


def dpm_cases():
    multi = "DPMSolverMultistep"
    single = "DPMSolverSinglestep"
    for spacing in SPACED:
        for order in (1, 2, 3):
            yield Case(multi, {**spacing, "solver_order": order})
        yield Case(multi, {**spacing, "algorithm_type": "sde-dpmsolver++"})
    for order in (1, 2, 3):
        yield Case(multi, {"final_sigmas_type": "sigma_min", "solver_order": order})
    yield Case(multi, OFFSET)
    yield Case(multi, ZERO, bound=1e-3, note=ZERO_NOTE)
    yield Case(multi, {**THRESHOLD, "sample_max_value": 1.5})
    for end in ("zero", "sigma_min"):
        yield Case(single, {"final_sigmas_type": end})


def karras_cases():
    config = {"use_karras_sigmas": True, "solver_order": 2}
    for scheduler in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"):
        yield Case(scheduler, config, note="diffusers rounds the timestep for the network")
    for scheduler in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete"):
        yield Case(scheduler, {"use_karras_sigmas": True})


def unipc_cases():
    name = "UniPCMultistep"
    for order in (1, 2, 3):
        for B in ("bh1", "bh2"):
            for end in ("zero", "sigma_min"):
                config = {"solver_order": order, "solver_type": B, "final_sigmas_type": end}
                case = Case(name, config)
                if (end, B) == ("zero", "bh1"):
                    case = case._replace(bound=None, note="diffusers ends in NaN")
                yield case
    yield Case(name, OFFSET)
    yield Case(name, ZERO, bound=1e-3, note=ZERO_NOTE)


def deis_cases():
    for order in (1, 2, 3):
        yield Case("DEISMultistep", {"solver_order": order})
    yield Case("DEISMultistep", OFFSET)


def sigma_cases():
    for spacing in [*SPACED, OFFSET]:
        bound = 1e-4
        note = ""
        if spacing["timestep_spacing"] == "linspace":
            bound = 1e-3
            note = "float t: diffusers interpolates sigma, ddpm_jax log SNR"
        for name in ("Euler", "EulerAncestral", "Heun", "LMS"):
            yield Case(name + "Discrete", spacing, bound=bound, note=note)
    yield Case("EulerDiscrete", {**SPACED[0], "final_sigmas_type": "sigma_min"})
    yield Case("EulerDiscrete", ZERO, bound=1e-3, note=ZERO_NOTE)


def read_as_another_cases():
    readers = (
        "DDIM",
        "PNDM",
        "UniPCMultistep",
        "DPMSolverMultistep",
        "EulerDiscrete",
        "HeunDiscrete",
    )
    for config in ({}, {"timestep_spacing": "trailing", "clip_sample": False}):
        for reader in readers:
            bound = 1e-3 if not config and reader.endswith("Discrete") else 5e-4
            yield Case("DDPM", config, bound=bound, read_as=reader)
    stable_diffusion = {"steps_offset": 1, "skip_prk_steps": True, "beta_schedule": "scaled_linear"}
    for reader in ("DDIM", "UniPCMultistep", "DPMSolverMultistep", "EulerAncestralDiscrete"):
        yield Case("PNDM", stable_diffusion, bound=1e-3, read_as=reader)


FAMILIES = (
    ddpm_cases,
    ddim_cases,
    pndm_cases,
    dpm_cases,
    karras_cases,
    unipc_cases,
    deis_cases,
    sigma_cases,
    read_as_another_cases,
)
CASES = [case for family in FAMILIES for case in family()]
