"""Compare the butterflies tutorial's training in diffusers with our training step.

    python tests/parity/training.py [--their-rounding]    # needs the extra `parity`

It takes about 10 minutes of CPU time.

On both sides the butterflies U-Net (18,536,323 parameters) starts from the same random weights and
sees the same images, timesteps and noise, in 100 steps of AdamW(lr=4e-4) on
mse_loss(noise_pred, noise). One side is PyTorch; the other is our training step with the optimizer
of the recipe `butterflies`. Rounding alone drives two runs apart. Therefore PyTorch is also
compared with itself: in float64, with other numbers of threads, and with another memory format. A
float32 run is left out if an earlier one is as far from float64 as ours. The tables show the
difference of the losses relative to the loss, at some steps and over all steps, and the differences
of the gradients of step 1 relative to the network's largest gradient.

"ours" is the library without changes. Its rounding differs in two places. optax computes
1 - 0.999^n in float32, which is too large by 5e-5 of its value at step 1; PyTorch does not.
diffusers computes 1 - alpha_bar in float32, with a relative error of 2e-4 at t = 0; we do not.
With --their-rounding, a further run of ours rounds as PyTorch and diffusers do. Rounding errors
grow from step to step, so the largest difference of two float32 runs, ours and PyTorch's or two of
PyTorch's, is a matter of chance. The distance from float64 is not.

The exit status is 1 if the largest distance of our losses from float64 is larger than that of every
float32 run of PyTorch, or if our gradients differ from PyTorch's by more than 1e-4.
"""

import shared  # before torch

# isort: split
import copy
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from exact_adam import exact_adamw
from nets import NAMED

from ddpm_jax.cli.recipes import load_recipe
from ddpm_jax.diffusion.schedule import from_betas, linear_betas, q_sample
from ddpm_jax.pretrained.unet_folder import load_net
from ddpm_jax.pretrained.weight_names import to_state_dict
from ddpm_jax.samplers import sample_keys
from ddpm_jax.training.step import init_state, make_train_step

NET = {"sample_size": 32} | NAMED["johnowhitaker/ddpm-butterflies-32px"]
CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = 100
# Two examples show whether rows mix and whether the loss is their mean. More take more time.
BATCH_SIZE = 2
BOUND = 1e-4
SHOWN = (1, 2, 5, 10, 25, 50, 100)
OUR_TABLES = from_betas(linear_betas(1000))
REFERENCE = "torch, 2 threads"
EXACT = "torch, float64"
FLOAT32_RUNS = {
    REFERENCE: {},
    "torch, 1 thread": {"threads": 1},
    "torch, channels last": {"memory_format": torch.channels_last},
    "torch, 4 threads": {"threads": 4},
}


class Run(NamedTuple):
    """The loss of each step, and the gradients of the first step by their names in diffusers."""

    losses: np.ndarray
    grads: dict[str, np.ndarray]


def batches():
    """Each step's smooth images in [-1, 1], timesteps and noise."""
    rng = np.random.default_rng(0)
    k = np.arange(4)
    waves = np.cos(np.pi * k * (np.arange(32)[:, None] + 0.5) / 32)  # (32, 4)
    weights = rng.normal(size=(STEPS, BATCH_SIZE, 4, 4, 3)) / (1 + k[:, None, None] + k[:, None])
    x0 = np.tanh(np.einsum("yk,xl,sbklc->sbyxc", waves, waves, weights)).astype(np.float32)
    t = rng.integers(0, 1000, (STEPS, BATCH_SIZE))
    eps = rng.normal(size=x0.shape).astype(np.float32)
    return list(zip(x0, t, eps, strict=True))


def print_step(step, loss):
    """Print the loss of some steps."""
    if step in SHOWN:
        shared.print_progress(f"step {step:3}  loss {loss:.6f}")


def theirs(model, data, threads=2, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Run the tutorial's training loop in PyTorch."""
    torch.set_num_threads(threads)
    model = copy.deepcopy(model).to(dtype=dtype, memory_format=memory_format).train()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    # The fused form takes a fifth of the time. In float32 the default rounds as users see it.
    fused = dtype == torch.float64
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, fused=fused)
    losses = []
    grads = {}
    for step, (x0, t, eps) in enumerate(data, 1):
        t = torch.tensor(t)
        x0, eps = (
            torch.tensor(a.transpose(0, 3, 1, 2)).to(dtype=dtype, memory_format=memory_format)
            for a in (x0, eps)
        )
        noise_pred = model(scheduler.add_noise(x0, eps, t), t, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(noise_pred, eps)
        loss.backward()
        grads = grads or {
            name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()
        }
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print_step(step, losses[-1])
    return Run(np.array(losses), grads)


def ours(net, params, data, schedule=OUR_TABLES, tx=None):
    """Run our training step with the given timesteps and noise."""

    def loss(params, keys, batch):
        xt = q_sample(schedule, batch["image"], batch["t"], batch["eps"])
        eps_hat = net.apply(params, xt, batch["t"])
        return jnp.mean((eps_hat - batch["eps"]) ** 2, axis=(1, 2, 3))

    tx = tx or load_recipe("butterflies", CONFIGS).make_optimizer(1000)
    train_step = jax.jit(make_train_step(loss, tx))
    state = init_state(params, tx)
    losses = []
    grads = {}
    keys = sample_keys(0, jnp.arange(BATCH_SIZE))  # this loss draws nothing
    for step, (x0, t, eps) in enumerate(data, 1):
        batch = {
            "image": jnp.asarray(x0),
            "t": jnp.asarray(t, jnp.int32),
            "eps": jnp.asarray(eps),
            "key": keys,
        }
        state, metrics = train_step(state, batch)
        if not grads:
            # Adam's mean starts at 0, so after one step it is 0.1 of the gradient.
            mean = optax.tree.get(state.opt_state, "mu")
            grads = to_state_dict(net, jax.tree.map(lambda mu: mu / 0.1, mean))
        losses.append(float(metrics["loss"]))
        print_step(step, losses[-1])
    return Run(np.array(losses), grads)


def their_tables():
    """Our schedule with the float32 roots that diffusers computes."""
    alpha_bar = diffusers.DDPMScheduler(num_train_timesteps=1000).alphas_cumprod
    signal = jnp.asarray((alpha_bar**0.5).numpy())
    noise = jnp.asarray(((1 - alpha_bar) ** 0.5).numpy())
    return dataclasses.replace(OUR_TABLES, sqrt_alpha_bar=signal, sqrt_one_minus_alpha_bar=noise)


def print_pair(name, run, reference):
    """Print one line. Return the largest difference of the losses and that of the gradients."""
    apart = np.abs(run.losses - reference.losses) / reference.losses
    largest = max(np.max(np.abs(g)) for g in reference.grads.values())
    # Python's max would hide NaN.
    grads = np.max([np.max(np.abs(run.grads[key] - g)) for key, g in reference.grads.items()])
    grads = grads / largest
    shown = "".join(f"{apart[step - 1]:9.1e}" for step in SHOWN if step <= len(apart))
    print(f"{name:24}{shown}  {apart.mean():8.1e} {apart.max():8.1e}  {grads:9.1e}", flush=True)
    return apart.max(), grads


def print_table(runs, reference):
    """Print the differences of all runs from one of them.

    Return {name: (largest difference of the losses, of the gradients)}.
    """
    steps = "".join(f"{f'step {step}':>9}" for step in SHOWN if step <= STEPS)
    print(f"{f'from {reference}':24}{steps}  {'mean':>8} {'largest':>8}  gradients")
    return {
        name: print_pair(name, run, runs[reference])
        for name, run in runs.items()
        if name != reference
    }


def all_runs(their_rounding):
    """Train in every way that is needed, and return {name: Run}."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**NET)
    data = batches()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        net, params = load_net(Path(folder))
    print(f"{net.parameter_count():,} parameters, {STEPS} steps of {BATCH_SIZE} images")
    our_options = {"ours": {}}
    if their_rounding:
        rounding = {"tx": exact_adamw(4e-4, 0.01), "schedule": their_tables()}
        our_options["ours, with theirs"] = rounding
    runs = {}
    for name, options in our_options.items():
        print(name, flush=True)
        runs[name] = ours(net, params, data, **options)
    for name, options in {EXACT: {"dtype": torch.float64}, **FLOAT32_RUNS}.items():
        print(name, flush=True)
        runs[name] = theirs(model, data, **options)
        if name in FLOAT32_RUNS and from_exact(runs, name) >= from_exact(runs, "ours"):
            break
    return runs


def from_exact(runs, name):
    """The largest difference of a run's losses from those in float64, relative to the loss."""
    exact = runs[EXACT].losses
    return np.max(np.abs(runs[name].losses - exact) / exact)


def main():
    """Print the tables. Return the exit status."""
    parser = shared.make_parser(__doc__)
    parser.add_argument("--their-rounding", action="store_true")
    their_rounding = parser.parse_args().their_rounding
    diffusers.utils.logging.set_verbosity_error()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    runs = all_runs(their_rounding)
    from_torch = print_table(runs, REFERENCE)
    print_table(runs, EXACT)
    torch_from_exact = max(from_exact(runs, name) for name in FLOAT32_RUNS if name in runs)
    figures = [
        shared.Figure("losses, from float64", from_exact(runs, "ours"), torch_from_exact),
        shared.Figure("gradients, relative to the largest", from_torch["ours"][1], BOUND),
    ]
    for figure in figures:
        mark = "OVER" if figure.over else ""
        print(f"{figure.name:36}{figure.value:.1e}  bound {figure.bound:.1e}  {mark}")
    return shared.conclude("training of the butterflies U-Net, in PyTorch and here", figures)


if __name__ == "__main__":
    sys.exit(main())
