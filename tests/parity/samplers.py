"""Every scheduler of an installed diffusers beside our sampler: python tests/parity/samplers.py  (extra `parity`).

Both walk from the same noise, with the same network and the same noise on the way. A line of the table gives

exact      the largest difference of their ends over the largest value, with the tables of diffusers in float64
as it is   the same with its own in float32, which have 1 - alpha_bar at t = 0 with an error of 2e-4
/255       the largest difference of the pictures in [-1, 1], in steps of 1/255, with its own tables
plain      as "as it is", without our `compat`, and our walk ending in clean data

The exit status is 1 if a line is over its bound, which holds for "exact", or its pictures differ by more than 1/255.
"""

import sys
from typing import NamedTuple
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.grids import CLEAN, rows, spaced
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise
from ddpm_jax.schedule import from_betas, linear

T = 1000
BETAS = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02}
SCHEDULE = from_betas(linear(T))
SQRT_ALPHA_BAR = np.sqrt(np.cumprod(1 - linear(T)))
SQRT_ONE_MINUS_ALPHA_BAR = np.sqrt(1 - np.cumprod(1 - linear(T)))
RANDOM = np.random.default_rng(0)
MIX, PHASE = RANDOM.normal(size=(3, 3)).astype(np.float32), RANDOM.uniform(0, 6, 3).astype(np.float32)
KEYS = sample_keys(0, jnp.arange(4))
NOISE = initial_noise(KEYS, (8, 8, 3))
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}
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


def ddim_cases():
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


def network(xp, xt, t, target):
    """A smooth network with some x0 outside [-1, 1]; xp is numpy or jax.numpy, t (b,)."""
    t = t.astype(xp.float32).reshape(-1, 1, 1, 1)
    tables = (xp.asarray(table, xp.float32) for table in (SQRT_ALPHA_BAR, SQRT_ONE_MINUS_ALPHA_BAR))
    a, b = (xp.interp(t, xp.arange(T), table).astype(xp.float32) for table in tables)
    x0 = 1.3 * xp.tanh(xt @ xp.asarray(MIX) + xp.sin(t / 200 + xp.asarray(PHASE)))
    eps = (xt - a * x0) / b
    return eps if target == "eps" else a * eps - b * x0


NETWORKS = {target: Partial(lambda xt, t, target=target: network(jnp, xt, t, target)) for target in PREDICTION_TYPE}


def scheduler_of(case, target, steps, exact):
    kind = getattr(diffusers, case.scheduler + "Scheduler")
    scheduler = kind(**BETAS, **case.config, prediction_type=PREDICTION_TYPE[target])
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - linear(T)))
        if getattr(scheduler, "final_alpha_cumprod", 1) != 1:
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    if exact and hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def end_of_diffusers(case, scheduler, target, noises):
    """x0 of diffusers; x in its own scale, as scale_model_input brings it to the network's."""
    module, rest = sys.modules[type(scheduler).__module__], iter(noises)

    def draw(*args, **kwargs):
        return torch.tensor(next(rest))

    x = torch.tensor(NOISE) / scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0]).float()
    with mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            xt = scheduler.scale_model_input(x, t).numpy()
            output = torch.from_numpy(network(np, xt, np.full(len(xt), float(t)), target))
            x = scheduler.step(output, t, x, **case.step).prev_sample
    return x.numpy()


def grid_of(scheduler, steps, end):
    times = scheduler._timesteps if isinstance(scheduler, diffusers.PNDMScheduler) else scheduler.timesteps.numpy()
    t = np.unique(times)[::-1]
    t = t.astype(int) if np.all(t == np.floor(t)) else t.astype(float)
    if end.startswith("stride"):
        return rows(SCHEDULE, t, np.maximum(t - T // steps, 0 if end == "stride 0" else CLEAN))
    return rows(SCHEDULE, t, np.append(t[1:], 0 if end == "level 0" else CLEAN))


def end_of_ours(case, grid, target, options, keep_eps):
    clip_x0 = 1.0 if case.clip else None
    denoise = make_denoiser(SCHEDULE, NETWORKS[target], target, clip_x0, keep_eps=keep_eps)
    return np.asarray(sample(KEYS, denoise, samplers.make(case.sampler, **options), grid, NOISE))


def relative(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def compare(case, target, steps):
    """The columns of a line; the last is None where there is nothing to leave out."""
    schedulers = [scheduler_of(case, target, steps, exact) for exact in (True, False)]
    grid = grid_of(schedulers[0], steps, case.end)
    noises = [np.asarray(step_noise(KEYS, grid.row(i), NOISE)) for i in range(len(grid.i))]
    exact, theirs = (end_of_diffusers(case, scheduler, target, noises) for scheduler in schedulers)
    averaged = {"average": "v"} if case.sampler == "pndm" and target == "v" else {}
    ours = end_of_ours(case, grid, target, {**case.options, **case.compat, **averaged}, case.sampler == "ddim")
    pictures = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    plain = None
    if case.compat or case.end != "clean":
        grid = grid_of(schedulers[0], steps, "clean")
        plain = relative(end_of_ours(case, grid, target, case.options, False), theirs)
    return relative(ours, exact), relative(ours, theirs), pictures, plain


def same_timesteps(spacing):
    """For how many numbers of steps ours are those of diffusers, which rounds halves otherwise or has one too many."""
    scheduler, same = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing), []
    for steps in range(1, T + 1):
        scheduler.set_timesteps(steps)
        same.append(np.array_equal(scheduler.timesteps.numpy(), spaced(T, steps, spacing)))
    return f"the same for {sum(same)} of {T} numbers of steps"


def print_line(case, target, steps):
    exact, as_it_is, pictures, plain = compare(case, target, steps)
    over = case.bound is not None and not (exact <= case.bound and pictures <= 1)
    settings = {**case.config, **case.step}.items()
    name = " ".join(
        [case.scheduler, *(value if isinstance(value, str) else f"{key}={value}" for key, value in settings)]
    )
    line = f"{name:52} {target:6} {steps:5}  {case.sampler:15} {exact:5.0e}  {as_it_is:8.0e}"
    bound, needed = ("-" if value is None else f"{value:.0e}" for value in (case.bound, plain))
    print(f"{line}  {pictures:6.2f}  {needed:>5}  {bound:>5}  {'OVER ' if over else ''}{case.note}", flush=True)
    return over


def main():
    """Prints the table; returns how many lines are over their bound."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_disable_most_optimizations", True)
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    for spacing in SPACINGS:
        print(f"timesteps {spacing}: {same_timesteps(spacing)}")
    print(f"{'scheduler':52} target steps  {'ours':15} exact  as it is    /255  plain  bound")
    over = 0
    for cases in (ddpm_cases, ddim_cases, pndm_cases, dpm_cases, unipc_cases, deis_cases, sigma_cases):
        for case in cases():
            for target, steps in (("eps", 10), ("eps", 50), ("v", 10), ("v", 50)):
                over += print_line(case, target, steps)
    print(f"{over} over their bound")
    return over


if __name__ == "__main__":
    sys.exit(main() > 0)
