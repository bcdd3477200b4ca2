"""Every scheduler of an installed diffusers beside ours: python tests/parity/samplers.py  (extra `parity`).

Ours is what we make of the scheduler's own JSON. Both walk from the same noise, with the same network and the same
noise on the way. A line of the table gives

exact      the largest difference of their ends over the largest value, with the tables of diffusers in float64
as it is   the same with its own in float32, which have 1 - alpha_bar at t = 0 with an error of 2e-4
/255       the largest difference of the pictures in [-1, 1], in steps of 1/255, with its own tables
plain      as "as it is", on our plain grid and without `compat`

The exit status is 1 if a line is over its bound, which holds for "exact", if its pictures differ by more than 1/255, or
if a scheduler has other keys or defaults than we know.
"""

import dataclasses
import functools
import inspect
import json
import sys
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from cases import CASES, SPACINGS
from jax.tree_util import Partial

from ddpm_jax.diffusion.schedule import from_betas, linear_betas
from ddpm_jax.generation.scheduler_grids import scheduler_grid
from ddpm_jax.generation.walk import sampling_grid, walk
from ddpm_jax.pretrained.scheduler_config import parse_scheduler
from ddpm_jax.pretrained.schedulers import SCHEDULERS
from ddpm_jax.samplers import initial_noise, sample_keys, step_noise

T, LEAST_SIGNAL = 1000, 2.0**-24
BETAS = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02}
RANDOM = np.random.default_rng(0)
MIX, PHASE = (
    RANDOM.normal(size=(3, 3)).astype(np.float32),
    RANDOM.uniform(0, 6, 3).astype(np.float32),
)
KEYS = sample_keys(0, jnp.arange(4))
NOISE = initial_noise(KEYS, (8, 8, 3))
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}


def network(xp, xt, t, target, alpha_bar, says_variance):
    """A smooth network with some x0 outside [-1, 1]; xp is numpy or jax.numpy, t (b,), alpha_bar (T,)."""
    t = t.astype(xp.float32).reshape(-1, 1, 1, 1)
    tables = (
        xp.asarray(np.sqrt(table), xp.float32)
        for table in (np.asarray(alpha_bar), 1 - np.asarray(alpha_bar))
    )
    a, b = (xp.interp(t, xp.arange(T), table).astype(xp.float32) for table in tables)
    x0 = 1.3 * xp.tanh(xt @ xp.asarray(MIX) + xp.sin(t / 200 + xp.asarray(PHASE)))
    eps = (xt - a * x0) / b
    output = {"eps": eps, "v": a * eps - b * x0, "x0": x0}[target]
    return xp.concatenate([output, xp.sin(3 * xt)], -1) if says_variance else output


@functools.cache
def our_network(*settings):
    """The network as a function that is the same object for the same settings."""
    return Partial(lambda xt, t: network(jnp, xt, t, *settings))


def made(case, target, steps=None, exact=False):
    """A scheduler of diffusers, that which reads the JSON of another if the case says so."""
    settings = {**BETAS, "prediction_type": PREDICTION_TYPE[target], **case.config}
    scheduler = getattr(diffusers, f"{case.scheduler}Scheduler")(**settings)
    if case.read_as is not None:
        scheduler = getattr(diffusers, f"{case.read_as}Scheduler").from_config(
            json.loads(scheduler.to_json_string())
        )
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(alpha_bar_of(scheduler))
        if getattr(scheduler, "final_alpha_cumprod", 1) != 1:
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if steps is not None:
        scheduler.set_timesteps(steps)
        if exact and hasattr(scheduler, "sigmas"):
            scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def alpha_bar_of(scheduler):
    """Its table in float64, by our schedules, which the tests hold to float64."""
    alpha_bar = np.cumprod(
        1 - np.asarray(ours_of(json.loads(scheduler.to_json_string()))[0].betas(), float)
    )
    if alpha_bar[-1] == 0 and float(scheduler.alphas_cumprod[-1]) > 0:
        alpha_bar[-1] = LEAST_SIGNAL
    return alpha_bar


def ours_of(config, name=None, steps=None, **options):
    """The objective and the sampling that we make of a JSON."""
    _, objective, sampling = parse_scheduler(config, name)
    return objective, dataclasses.replace(
        sampling, steps=steps or sampling.steps, options=sampling.options | options
    )


def end_of_diffusers(case, scheduler, net, noises):
    """x0 of diffusers; x in its own scale, as scale_model_input brings it to the network's."""
    module, rest = sys.modules[type(scheduler).__module__], iter(noises)

    def draw(*args, **kwargs):
        noise = torch.tensor(next(rest))
        return noise.movedim(-1, 1) if case.says_variance else noise

    x = torch.tensor(NOISE) * scheduler.init_noise_sigma
    with mock.patch.object(module, "randn_tensor", draw, create=True):
        for t in scheduler.timesteps:
            xt = scheduler.scale_model_input(x, t).numpy()
            output = network(np, xt, np.full(len(xt), float(t)), *net)
            x = _step(scheduler, torch.from_numpy(output), t, x, case)
    return x.numpy()


def _step(scheduler, output, t, x, case):
    """prev_sample; diffusers has channels second where it splits them, pictures of 4 dimensions here have them last."""
    if not case.says_variance:
        return scheduler.step(output, t, x, **case.step).prev_sample
    first = scheduler.step(output.movedim(-1, 1), t, x.movedim(-1, 1), **case.step).prev_sample
    return first.movedim(1, -1)


def end_of_ours(objective, sampling, net):
    *_, x0 = walk(KEYS, objective, our_network(*net), NOISE.shape[1:], sampling, 1)
    return np.asarray(x0)


def relative(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def compare(case, target, steps):
    """The columns of a line; the last is None where there is nothing to leave out."""
    config = json.loads(made(case._replace(read_as=None), target).to_json_string())
    objective, sampling = ours_of(
        config, case.read_as and f"{case.read_as}Scheduler", steps, **case.step
    )
    alpha_bar = np.cumprod(1 - np.asarray(objective.betas(), float))
    net = objective.target, tuple(alpha_bar), case.says_variance
    grid = sampling_grid(objective, sampling)
    noises = [np.asarray(step_noise(KEYS, grid.row(i), NOISE)) for i in range(len(grid.i))]
    exact, theirs = (
        end_of_diffusers(case, made(case, target, steps, exact), net, noises)
        for exact in (True, False)
    )
    ours = end_of_ours(objective, sampling, net)
    pictures = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    plain = None
    options = {key: value for key, value in sampling.options.items() if key != "compat"}
    bare = dataclasses.replace(sampling, options=options, grid="plain", keep_eps=False)
    if bare != sampling:
        plain = relative(end_of_ours(objective, bare, net), theirs)
    return relative(ours, exact), relative(ours, theirs), pictures, plain


GRIDS = (
    "DDIM",
    "PNDM",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
)
GRIDS += ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete")


def same_timesteps(name, spacing):
    """For how many numbers of steps the timesteps of our grid are those of a scheduler."""
    settings = {} if "Single" in name else {"timestep_spacing": spacing}
    settings |= {"skip_prk_steps": True} if name == "PNDM" else {}
    scheduler, same = getattr(diffusers, f"{name}Scheduler")(**BETAS, **settings), []
    kind, schedule = SCHEDULERS[f"{name}Scheduler"].grid, from_betas(linear_betas(T))
    for steps in (*range(2, 51), *range(53, T, 29)):
        scheduler.set_timesteps(steps)
        times = scheduler._timesteps if name == "PNDM" else scheduler.timesteps.numpy()
        theirs = np.unique(times)[::-1]
        ours = np.asarray(scheduler_grid(kind, schedule, steps, spacing).t)
        same.append(len(theirs) == steps and np.allclose(ours, theirs, atol=1e-3))
    return f"{sum(same)} of {len(same)}"


def other_defaults():
    """The schedulers that have other keys than we know, or other values where they are missing."""
    for name, kind in SCHEDULERS.items():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
        theirs = {p.name: p.default for p in parameters if p.name != "self"}
        if theirs != kind.defaults:
            print(f"{name}: {sorted({*theirs.items()} ^ {*kind.defaults.items()}, key=str)}")
            yield name


def print_line(case, target, steps):
    exact, as_it_is, pictures, plain = compare(case, target, steps)
    over = case.loss_kind is not None and not (exact <= case.loss_kind and pictures <= 1)
    settings = {**case.config, **case.step}.items()
    words = [value if isinstance(value, str) else f"{key}={value}" for key, value in settings]
    name = " ".join([case.scheduler, *([f"as {case.read_as}"] if case.read_as else []), *words])
    line = f"{name:64} {target:6} {steps:5}  {exact:5.0e}  {as_it_is:8.0e}"
    bound, needed = ("-" if value is None else f"{value:.0e}" for value in (case.loss_kind, plain))
    print(
        f"{line}  {pictures:6.2f}  {needed:>5}  {bound:>5}  {'OVER ' if over else ''}{case.note}",
        flush=True,
    )
    return over


def main():
    """Prints the table; returns how many lines are over their bound."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_disable_most_optimizations", True)
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    over = len(list(other_defaults()))
    print(f"{over} of {len(SCHEDULERS)} schedulers have other keys or defaults than we know")
    print("for how many of some numbers of steps our grid has the timesteps of a scheduler")
    for name in GRIDS:
        spacings = ("linspace",) if "Single" in name else SPACINGS
        counts = ", ".join(f"{spacing} {same_timesteps(name, spacing)}" for spacing in spacings)
        print(f"{name:20} {counts}", flush=True)
    print(f"{'scheduler':64} target steps  exact  as it is    /255  plain  bound")
    for case in CASES:
        for target, steps in (("eps", 10), ("eps", 50), ("v", 10), ("v", 50)):
            said = "prediction_type" in case.config and target == "v"
            if not (said or (case.zero and target == "eps")):
                over += print_line(case, target, steps)
    print(f"{over} over their bound")
    return over


if __name__ == "__main__":
    sys.exit(main() > 0)
