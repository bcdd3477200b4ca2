"""Compare the schedulers of the installed diffusers with our samplers.

    python tests/parity/samplers.py    # needs the extra `parity`

It takes about 8 minutes of CPU time.

Our side reads the scheduler's own JSON. Both sides start from the same initial noise, use the same
network, and add the same noise in each step. Each line shows

exact      the largest difference of the results, relative to the largest value, with the tables of
           diffusers replaced by float64 tables
as it is   the same with the float32 tables of diffusers, whose 1 - alpha_bar has a relative error
           of 2e-4 at t = 0
/255       the largest difference of the images in units of 1/255, with the tables of diffusers
plain      like "as it is", but with our plain grid, and without `compat` and `keep_eps`; only for
           10 steps, because it has no bound and takes a compilation

The exit status is 1 if "exact" is over the line's bound, if the images differ by more than 1/255
(both only on lines with a bound), or if a scheduler has keys or defaults that ddpm_jax does not
know.
"""

import shared  # before torch

# isort: split
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

T = 1000
# The alpha_bar of diffusers at T-1 in place of 0.
MIN_ALPHA_BAR = 2.0**-24
BETAS = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02}
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(3, 3)).astype(np.float32)
PHASE = RNG.uniform(0, 6, 3).astype(np.float32)
KEYS = sample_keys(0, jnp.arange(4))
NOISE = initial_noise(KEYS, (8, 8, 3))  # (4, 8, 8, 3)
DRAW = jax.jit(step_noise)
PLAIN_STEPS = 10
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction"}


def network(xp, xt, t, target, alpha_bar, learns_variance):
    """A smooth network with some x0 outside [-1, 1].

    `xp` is numpy or jax.numpy; xt is (b, h, w, c), t (b,), alpha_bar (T,).
    """
    t = t.astype(xp.float32).reshape(-1, 1, 1, 1)
    tables = (
        xp.asarray(np.sqrt(table), xp.float32)
        for table in (np.asarray(alpha_bar), 1 - np.asarray(alpha_bar))
    )
    a, b = (xp.interp(t, xp.arange(T), table).astype(xp.float32) for table in tables)
    x0 = 1.3 * xp.tanh(xt @ xp.asarray(MIX) + xp.sin(t / 200 + xp.asarray(PHASE)))
    eps = (xt - a * x0) / b
    output = {"eps": eps, "v": a * eps - b * x0, "x0": x0}[target]
    if not learns_variance:
        return output
    return xp.concatenate([output, xp.sin(3 * xt)], -1)  # (b, h, w, 2c)


@functools.cache
def our_network(*settings):
    """The network in JAX; the same object for the same settings, so that jit compiles once."""
    return Partial(lambda xt, t: network(jnp, xt, t, *settings))


def make_scheduler(case, target, steps=None, exact=False):
    """Make the scheduler of a case, `exact` with float64 tables."""
    settings = {**BETAS, "prediction_type": PREDICTION_TYPE[target], **case.config}
    scheduler = getattr(diffusers, f"{case.scheduler}Scheduler")(**settings)
    if case.read_as is not None:
        reader = getattr(diffusers, f"{case.read_as}Scheduler")
        scheduler = reader.from_config(json.loads(scheduler.to_json_string()))
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
    """A scheduler's alpha_bar (T,) in float64, from our schedules.

    The tests compare these schedules with float64.
    """
    objective, _ = read_config(json.loads(scheduler.to_json_string()))
    alpha_bar = np.cumprod(1 - np.asarray(objective.betas(), float))
    if alpha_bar[-1] == 0 and float(scheduler.alphas_cumprod[-1]) > 0:
        alpha_bar[-1] = MIN_ALPHA_BAR
    return alpha_bar


def read_config(config, name=None, steps=None, **options):
    """Our objective and sampling for a scheduler's JSON."""
    _, objective, sampling = parse_scheduler(config, name)
    steps = steps or sampling.steps
    sampling = dataclasses.replace(sampling, steps=steps, options=sampling.options | options)
    return objective, sampling


def their_end(case, scheduler, net, noises):
    """The x0 of diffusers.

    x has the scheduler's own scale, which scale_model_input changes to that of the network.
    """
    module = sys.modules[type(scheduler).__module__]
    remaining = iter(noises)

    def next_noise(*args, **kwargs):
        noise = torch.tensor(next(remaining))
        return noise.movedim(-1, 1) if case.learns_variance else noise

    x = torch.tensor(NOISE) * scheduler.init_noise_sigma
    with mock.patch.object(module, "randn_tensor", next_noise, create=True):
        for t in scheduler.timesteps:
            xt = scheduler.scale_model_input(x, t).numpy()
            output = network(np, xt, np.full(len(xt), float(t)), *net)
            x = _step(scheduler, torch.from_numpy(output), t, x, case)
    return x.numpy()


def _step(scheduler, output, t, x, case):
    """Take a step of diffusers with arrays (b, h, w, c).

    Schedulers mind the order of axes only where they split the channels of a learned variance.
    """
    if not case.learns_variance:
        return scheduler.step(output, t, x, **case.step).prev_sample
    result = scheduler.step(output.movedim(-1, 1), t, x.movedim(-1, 1), **case.step)
    return result.prev_sample.movedim(1, -1)


def our_end(objective, sampling, net):
    """Our x0."""
    *_, x0 = walk(KEYS, objective, our_network(*net), NOISE.shape[1:], sampling, 1)
    return np.asarray(x0)


def noises(grid):
    """Yield the noise of each step. Most schedulers draw none."""
    for i in range(len(grid.i)):
        yield np.asarray(DRAW(KEYS, grid.row(i), NOISE))


def relative(ours, theirs):
    """The largest difference, relative to the largest value of diffusers."""
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def compare(case, target, steps):
    """The four numbers of a line; "plain" is None if the sampling is plain already."""
    config = json.loads(make_scheduler(case._replace(read_as=None), target).to_json_string())
    name = case.read_as and f"{case.read_as}Scheduler"
    objective, sampling = read_config(config, name, steps, **case.step)
    alpha_bar = np.cumprod(1 - np.asarray(objective.betas(), float))
    net = (objective.target, tuple(alpha_bar), case.learns_variance)
    grid = sampling_grid(objective, sampling)
    exact, theirs = (
        their_end(case, make_scheduler(case, target, steps, exact), net, noises(grid))
        for exact in (True, False)
    )
    ours = our_end(objective, sampling, net)
    images_apart = 127.5 * np.max(np.abs(np.clip(ours, -1, 1) - np.clip(theirs, -1, 1)))
    plain = None
    options = {key: value for key, value in sampling.options.items() if key != "compat"}
    plain_sampling = dataclasses.replace(sampling, options=options, grid="plain", keep_eps=False)
    if plain_sampling != sampling and steps == PLAIN_STEPS:
        plain = relative(our_end(objective, plain_sampling, net), theirs)
    return relative(ours, exact), relative(ours, theirs), images_apart, plain


GRIDS = (
    "DDIM",
    "PNDM",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
    "EulerDiscrete",
    "HeunDiscrete",
    "LMSDiscrete",
)


def same_timesteps(name, spacing):
    """For how many numbers of steps our grid has the same timesteps as a scheduler."""
    settings = {} if "Single" in name else {"timestep_spacing": spacing}
    if name == "PNDM":
        settings["skip_prk_steps"] = True
    scheduler = getattr(diffusers, f"{name}Scheduler")(**BETAS, **settings)
    kind = SCHEDULERS[f"{name}Scheduler"].grid
    schedule = from_betas(linear_betas(T))
    same = []
    for steps in (*range(2, 51), *range(53, T, 29)):
        scheduler.set_timesteps(steps)
        timesteps = scheduler._timesteps if name == "PNDM" else scheduler.timesteps.numpy()
        theirs = np.unique(timesteps)[::-1]
        ours = np.asarray(scheduler_grid(kind, schedule, steps, spacing).t)
        same.append(len(theirs) == steps and np.allclose(ours, theirs, atol=1e-3))
    return f"{sum(same)} of {len(same)}"


def different_defaults():
    """Print and yield the schedulers that have keys or defaults that ddpm_jax does not know."""
    for name, spec in SCHEDULERS.items():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
        theirs = {p.name: p.default for p in parameters if p.name != "self"}
        if theirs != spec.defaults:
            print(f"{name}: {sorted({*theirs.items()} ^ {*spec.defaults.items()}, key=str)}")
            yield name


def print_line(case, target, steps):
    """Compare a case. Return its figures: two, or none if the case has no bound."""
    exact, as_it_is, images_apart, plain = compare(case, target, steps)
    settings = {**case.config, **case.step}.items()
    words = [value if isinstance(value, str) else f"{key}={value}" for key, value in settings]
    if case.read_as:
        words.insert(0, f"as {case.read_as}")
    name = " ".join([case.scheduler, *words])
    line = f"{name:64} {target:6} {steps:5}  {exact:5.0e}  {as_it_is:8.0e}  {images_apart:6.2f}"
    plain, bound = ("-" if value is None else f"{value:.0e}" for value in (plain, case.bound))
    figures = []
    if case.bound is not None:
        name = f"{name}, {target}, {steps} steps"
        figures = [
            shared.Figure(f"{name}, relative to the largest value", exact, case.bound),
            shared.Figure(f"{name}, images in 1/255,", images_apart, 1.0),
        ]
    mark = "OVER " if any(figure.over for figure in figures) else ""
    print(f"{line}  {plain:>5}  {bound:>5}  {mark}{case.note}", flush=True)
    return figures


def main():
    """Print the table. Return the exit status."""
    shared.make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_disable_most_optimizations", True)
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    unknown = len(list(different_defaults()))
    print(f"{unknown} of {len(SCHEDULERS)} schedulers have unknown keys or defaults")
    print("numbers of steps for which our grid has the same timesteps as the scheduler")
    for name in GRIDS:
        spacings = ("linspace",) if "Single" in name else SPACINGS
        counts = ", ".join(f"{spacing} {same_timesteps(name, spacing)}" for spacing in spacings)
        print(f"{name:20} {counts}", flush=True)
    print(f"{'scheduler':64} target steps  exact  as it is    /255  plain  bound")
    shared.print_progress("results")
    figures = []
    for case in CASES:
        for target, steps in (("eps", 10), ("eps", 50), ("v", 10), ("v", 50)):
            # A case with its own prediction type runs once per number of steps.
            repeated = "prediction_type" in case.config and target == "v"
            undefined = case.zero_terminal_snr and target == "eps"
            if not (repeated or undefined):
                figures += print_line(case, target, steps)
    what = f"{len(CASES)} settings of {len(SCHEDULERS)} schedulers, their defaults and results"
    return shared.conclude(what, figures, unknown)


if __name__ == "__main__":
    sys.exit(main())
