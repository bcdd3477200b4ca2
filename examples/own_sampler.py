"""Write a sampler, and measure it on data whose probability-flow ODE has a known solution.

    python examples/own_sampler.py    # prints the error of the new sampler beside DDIM's

The data are Gaussian, so the exact network is known, and the only error is the sampler's. Only
`dj.sample` takes such a sampler: commands and `Pipeline` need a file in ddpm_jax/samplers.
"""

import jax.numpy as jnp
from jax.tree_util import Partial

import ddpm_jax as dj
from ddpm_jax.diffusion.analytic import gaussian_x0
from ddpm_jax.samplers.ddim import ddim

MEAN, STD = 0.5, 0.1
NUM_SAMPLES = 1024
STEPS = (25, 50, 100, 200)


def two_step() -> dj.Sampler:
    """Integrate eps over sigma, which is finite, with the line through this eps and the last.

    The step is h (eps + h / (2 h_before) (eps - eps_before)), the two-step Adams-Bashforth method.
    """
    return dj.Sampler(Partial(_init), Partial(_step), order=2)


def _init(xT):
    return jnp.zeros_like(xT), jnp.full((), jnp.inf, xT.dtype)  # h / inf removes the line's slope


def _step(keys, denoise, xt, row, state):
    eps_before, h_before = state
    x0, eps, _ = denoise(xt, row.t)
    h = row.sigma_next - row.sigma
    bend = jnp.where(row.sigma_next > 0, h / (2 * h_before), 0)  # the last step returns x0
    correction = h * bend * (eps - eps_before)
    x_next = row.sqrt_alpha_bar_next * (x0 + row.sigma_next * eps + correction)
    return x_next, (eps, h)


def rms_error(sampler: dj.Sampler, steps: int) -> float:
    """The root mean square distance of the samples from the exact ends of their paths."""
    keys = dj.sample_keys(seed=0, indices=jnp.arange(NUM_SAMPLES))
    xT = dj.initial_noise(keys, (1, 1, 1))  # (n, 1, 1, 1)
    grid = dj.make_grid(schedule, dj.timesteps_for(schedule, steps, "log_snr"))
    x0 = dj.sample(keys, denoise, sampler, grid, xT)
    signal, noise = schedule.sqrt_alpha_bar[-1], schedule.sqrt_one_minus_alpha_bar[-1]
    exact = MEAN + STD * (xT - signal * MEAN) / jnp.sqrt((signal * STD) ** 2 + noise**2)
    return float(jnp.sqrt(jnp.mean((x0 - exact) ** 2)))


schedule = dj.from_betas(dj.linear_betas(1000))
network = gaussian_x0(schedule, jnp.full((1, 1, 1), MEAN), jnp.full((1, 1), STD**2))
denoise = dj.make_denoiser(schedule, network, "x0", None)
for steps in STEPS:
    errors = [rms_error(ddim(), steps), rms_error(two_step(), steps)]
    print(f"{steps:4} steps: error {errors[0]:.5f} by DDIM, {errors[1]:.5f} by two_step")
