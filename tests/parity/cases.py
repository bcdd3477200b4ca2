"""Schedulers of diffusers with their settings, and the samplers of ours that are to match them."""

from typing import NamedTuple

COMPAT = {"compat": True}


class Case(NamedTuple):
    """A scheduler with its settings, and what of ours is to match it."""

    scheduler: str
    config: dict
    sampler: str
    options: dict = {}  # noqa: RUF012
    compat: dict = {}  # noqa: RUF012
    end: str = "clean"  # where the walk goes: clean; level 0; stride (T // steps down, then clean); stride 0
    step: dict = {}  # noqa: RUF012
    clip: bool = False
    bound: float | None = 1e-4
    note: str = ""
    threshold: float | None = None
    zero: bool = False  # zero terminal SNR
    says_variance: bool = False
    karras: bool = False


SPACINGS = ("leading", "trailing", "linspace")
SPACED = [{"timestep_spacing": spacing} for spacing in SPACINGS]


def ddpm_cases():
    for spacing in SPACED:
        for variance in ("fixed_small", "fixed_large"):
            for clip in (True, False):
                config = {**spacing, "variance_type": variance, "clip_sample": clip}
                case = Case("DDPM", config, "ddpm", {"variance": variance}, clip=clip)
                if spacing["timestep_spacing"] == "trailing" and variance == "fixed_large":
                    case = case._replace(bound=None, note="diffusers leaves noise on the last picture")
                yield case

    for clip in (True, False):
        config = {"timestep_spacing": "leading", "variance_type": "learned_range", "clip_sample": clip}
        yield Case("DDPM", config, "ddpm", {"variance": "learned_range"}, clip=clip, says_variance=True)
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 100.0}
    yield Case("DDPM", {**threshold, "clip_sample": False}, "ddpm", threshold=0.9)


def ddim_cases():
    config = {"timestep_spacing": "trailing", "clip_sample": False, "rescale_betas_zero_snr": True}
    yield Case("DDIM", config, "ddim", {}, COMPAT, "stride", zero=True, note="zero terminal SNR")
    for spacing in SPACED:
        for eta in (0.0, 0.5, 1.0):
            for clip in (True, False):
                config = {**spacing, "clip_sample": clip}
                yield Case("DDIM", config, "ddim", {"eta": eta}, COMPAT, "stride", {"eta": eta}, clip)


def pndm_cases():
    for skip in (False, True):
        for to_one in (False, True):
            config = {"skip_prk_steps": skip, "set_alpha_to_one": to_one}
            end = "stride" if to_one else "stride 0"
            case = Case("PNDM", config, "pndm", {"runge_kutta": not skip}, COMPAT, end)
            yield case._replace(bound=5e-4, note="sums of large multiples of eps, in float32 both")


def dpm_cases():
    multi, single = "DPMSolverMultistep", "DPMSolverSinglestep"
    for spacing in SPACED:
        yield Case(multi, {**spacing, "solver_order": 1}, "ddim")
        yield Case(multi, {**spacing, "solver_order": 2}, "dpmpp_2m")
        yield Case(multi, {**spacing, "solver_order": 3}, "dpmpp_3m", compat=COMPAT)
        yield Case(multi, {**spacing, "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde")
    yield Case(multi, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, "dpmpp_2m", end="level 0")
    yield Case(single, {}, "dpmpp_2s", compat=COMPAT)
    yield Case(single, {"final_sigmas_type": "sigma_min"}, "dpmpp_2s", compat=COMPAT, end="level 0")


def karras_cases():
    note = "diffusers rounds the timestep that the network sees"
    config = {"use_karras_sigmas": True, "solver_order": 2}
    for scheduler, sampler, options, compat in (
        ("DPMSolverMultistep", "dpmpp_2m", {}, {}),
        ("UniPCMultistep", "unipc", {}, COMPAT),
        ("DEISMultistep", "deis", {"order": 2}, COMPAT),
    ):
        end = "level 0" if scheduler.startswith("DEIS") else "clean"
        yield Case(scheduler, config, sampler, options, compat, end, karras=True, note=note)


def unipc_cases():
    for order in (1, 2, 3):
        for B in ("bh1", "bh2"):
            for end in ("zero", "sigma_min"):
                config = {"solver_order": order, "solver_type": B, "final_sigmas_type": end}
                case = Case("UniPCMultistep", config, "unipc", {"order": order, "B": B}, COMPAT)
                if end == "sigma_min":
                    case = case._replace(end="level 0")
                elif B == "bh1":
                    case = case._replace(bound=None, note="diffusers ends in NaN")
                yield case


def deis_cases():
    for order in (1, 2, 3):
        yield Case("DEISMultistep", {"solver_order": order}, "deis", {"order": order}, COMPAT, "level 0")


def sigma_cases():
    for spacing in SPACED:
        bound, note = 1e-4, ""
        if spacing["timestep_spacing"] == "linspace":
            bound, note = 1e-3, "float t: diffusers interpolates sigma, we log SNR"
        for name in ("Euler", "EulerAncestral", "Heun", "LMS"):
            sampler = {"EulerAncestral": "euler_ancestral"}.get(name, name.lower())
            yield Case(name + "Discrete", spacing, sampler, bound=bound, note=note)
    for scheduler, sampler in (("EulerDiscrete", "euler"), ("HeunDiscrete", "heun")):
        yield Case(scheduler, {"use_karras_sigmas": True}, sampler)


FAMILIES = (ddpm_cases, ddim_cases, pndm_cases, dpm_cases, karras_cases, unipc_cases, deis_cases, sigma_cases)
CASES = [case for family in FAMILIES for case in family()]
