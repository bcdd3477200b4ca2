"""Every scheduler of an installed diffusers beside our sampler: python tests/parity/samplers.py  (extra `parity`).

Both walk from the same noise, with the same network and the same noise on the way. A line of the table gives

exact      the largest difference of their ends over the largest value, with the tables of diffusers in float64
as it is   the same with its own in float32, which have 1 - alpha_bar at t = 0 with an error of 2e-4
/255       the largest difference of the pictures in [-1, 1], in steps of 1/255, with its own tables
plain      as "as it is", without our `compat`, and our walk ending in clean data

The exit status is 1 if a line is over its bound, which holds for "exact", or its pictures differ by more than 1/255.
"""

import functools
import sys
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from cases import CASES, SPACINGS
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.compat import compat_grid
from ddpm_jax.grids import CLEAN, rows
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise
from ddpm_jax.schedule import from_betas, linear, zero_terminal_snr

T = 1000
BETAS = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02}
ALPHA_BAR = {False: np.cumprod(1 - linear(T)), True: np.cumprod(1 - zero_terminal_snr(linear(T)))}
SCHEDULES = {False: from_betas(linear(T)), True: from_betas(zero_terminal_snr(linear(T)))}
SCHEDULE = SCHEDULES[False]
RANDOM = np.random.default_rng(0)
MIX, PHASE = RANDOM.normal(size=(3, 3)).astype(np.float32), RANDOM.uniform(0, 6, 3).astype(np.float32)
KEYS = sample_keys(0, jnp.arange(4))
NOISE = initial_noise(KEYS, (8, 8, 3))
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}


def network(xp, xt, t, target, zero, says_variance):
    """A smooth network with some x0 outside [-1, 1]; xp is numpy or jax.numpy, t (b,)."""
    t = t.astype(xp.float32).reshape(-1, 1, 1, 1)
    tables = (xp.asarray(np.sqrt(table), xp.float32) for table in (ALPHA_BAR[zero], 1 - ALPHA_BAR[zero]))
    a, b = (xp.interp(t, xp.arange(T), table).astype(xp.float32) for table in tables)
    x0 = 1.3 * xp.tanh(xt @ xp.asarray(MIX) + xp.sin(t / 200 + xp.asarray(PHASE)))
    eps = (xt - a * x0) / b
    output = eps if target == "eps" else a * eps - b * x0
    return xp.concatenate([output, xp.sin(3 * xt)], -1) if says_variance else output


@functools.cache
def our_network(karras, *settings):
    """The network; with Karras sigmas it sees whole timesteps, as it does in diffusers."""
    return Partial(lambda xt, t: network(jnp, xt, jnp.round(t) if karras else t, *settings))


def scheduler_of(case, target, steps, exact):
    kind = getattr(diffusers, case.scheduler + "Scheduler")
    scheduler = kind(**BETAS, **case.config, prediction_type=PREDICTION_TYPE[target])
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(ALPHA_BAR[case.zero])
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
        noise = torch.tensor(next(rest))
        return noise.movedim(-1, 1) if case.says_variance else noise

    x = torch.tensor(NOISE) / scheduler.scale_model_input(torch.ones(1), scheduler.timesteps[0]).float()
    with mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            xt = scheduler.scale_model_input(x, t).numpy()
            output = network(np, xt, np.full(len(xt), float(t)), target, case.zero, case.says_variance)
            x = _step(scheduler, torch.from_numpy(output), t, x, case)
    return x.numpy()


def _step(scheduler, output, t, x, case):
    """prev_sample; diffusers has channels second where it splits them, pictures of 4 dimensions here have them last."""
    if not case.says_variance:
        return scheduler.step(output, t, x, **case.step).prev_sample
    first = scheduler.step(output.movedim(-1, 1), t, x.movedim(-1, 1), **case.step).prev_sample
    return first.movedim(1, -1)


def grid_of(case, scheduler, steps, end):
    schedule = SCHEDULES[case.zero]
    if case.karras:
        sigmas = scheduler.sigmas.numpy().astype(float)[:steps]
        t = np.asarray(SCHEDULE.t_of(-2 * jnp.log(jnp.asarray(sigmas))), float)
        return rows(SCHEDULE, t, np.append(t[1:], 0.0 if end == "level 0" else CLEAN))
    times = scheduler._timesteps if isinstance(scheduler, diffusers.PNDMScheduler) else scheduler.timesteps.numpy()
    t = np.unique(times)[::-1]
    t = t.astype(int) if np.all(t == np.floor(t)) else t.astype(float)
    if end.startswith("stride"):
        return rows(schedule, t, np.maximum(t - T // steps, 0 if end == "stride 0" else CLEAN))
    return rows(schedule, t, np.append(t[1:], 0 if end == "level 0" else CLEAN))


def end_of_ours(case, grid, target, options, keep_eps):
    limits = {"dynamic_threshold": case.threshold, "keep_eps": keep_eps}
    net = our_network(case.karras, target, case.zero, case.says_variance)
    denoise = make_denoiser(SCHEDULES[case.zero], net, target, 1.0 if case.clip else None, **limits)
    return np.asarray(sample(KEYS, denoise, samplers.make(case.sampler, **options), grid, NOISE))


def relative(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def compare(case, target, steps):
    """The columns of a line; the last is None where there is nothing to leave out."""
    schedulers = [scheduler_of(case, target, steps, exact) for exact in (True, False)]
    grid = grid_of(case, schedulers[0], steps, case.end)
    noises = [np.asarray(step_noise(KEYS, grid.row(i), NOISE)) for i in range(len(grid.i))]
    exact, theirs = (end_of_diffusers(case, scheduler, target, noises) for scheduler in schedulers)
    averaged = {"average": "v"} if case.sampler == "pndm" and target == "v" else {}
    ours = end_of_ours(case, grid, target, {**case.options, **case.compat, **averaged}, case.sampler == "ddim")
    pictures = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    plain = None
    if case.compat or case.end != "clean":
        grid = grid_of(case, schedulers[0], steps, "clean")
        plain = relative(end_of_ours(case, grid, target, case.options, False), theirs)
    return relative(ours, exact), relative(ours, theirs), pictures, plain


WALKS = {
    "DDIM": "ddim",
    "PNDM": "pndm",
    "DPMSolverMultistep": "dpmpp_2m",
    "DPMSolverSinglestep": "dpmpp_2s",
    "UniPCMultistep": "unipc",
    "DEISMultistep": "deis",
    "EulerDiscrete": "euler",
    "HeunDiscrete": "heun",
    "LMSDiscrete": "lms",
}


def same_walks(name, spacing):
    """For how many numbers of steps the timesteps of our compat walk are those of a scheduler."""
    settings = {} if "Single" in name else {"timestep_spacing": spacing}
    settings |= {"skip_prk_steps": True} if name == "PNDM" else {}
    scheduler, same = getattr(diffusers, f"{name}Scheduler")(**BETAS, **settings), []
    walk = samplers.make(WALKS[name], compat=True).compat_walk
    for steps in (*range(2, 51), *range(53, T, 29)):
        scheduler.set_timesteps(steps)
        times = scheduler._timesteps if name == "PNDM" else scheduler.timesteps.numpy()
        theirs = np.unique(times)[::-1]
        ours = np.asarray(compat_grid(walk, SCHEDULE, steps, spacing).t)
        same.append(len(theirs) == steps and np.allclose(ours, theirs, atol=1e-3))
    return f"{sum(same)} of {len(same)}"


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
    print("for how many of some numbers of steps our compat walk has the timesteps of a scheduler")
    for name in WALKS:
        spacings = ("linspace",) if "Single" in name else SPACINGS
        print(f"{name:20} " + ", ".join(f"{spacing} {same_walks(name, spacing)}" for spacing in spacings), flush=True)
    print(f"{'scheduler':52} target steps  {'ours':15} exact  as it is    /255  plain  bound")
    over = 0
    for case in CASES:
        for target, steps in (("eps", 10), ("eps", 50), ("v", 10), ("v", 50)):
            if not (case.zero and target == "eps"):
                over += print_line(case, target, steps)
    print(f"{over} over their bound")
    return over


if __name__ == "__main__":
    sys.exit(main() > 0)
