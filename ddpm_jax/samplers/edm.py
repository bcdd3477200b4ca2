"""The stochastic sampler of EDM: Algorithm 2, Karras et al. 2022."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler, stateless_init, step_noise
from ddpm_jax.samplers.heun import heun_step


def edm(
    *, S_churn: float = 0.0, S_min: float = 0.0, S_max: float = float("inf"), S_noise: float = 1.0
) -> Sampler:
    """Adds noise up to sigma_hat = (1 + gamma) sigma, then takes Heun's step from there.

    gamma = min(S_churn / steps, sqrt(2) - 1) where S_min <= sigma <= S_max, else 0; the noise has deviation S_noise.
    Made for the grid `--spacing karras`. The schedule ends at t = T-1, and so does sigma_hat.
    """
    for name, value in (
        ("S_churn", S_churn),
        ("S_min", S_min),
        ("S_max", S_max),
        ("S_noise", S_noise),
    ):
        check(value >= 0, f"{name} must not be negative, not {value}")
    return Sampler(
        Partial(stateless_init),
        Partial(_step, S_churn, S_min, S_max, S_noise),
        order=2,
        evaluations=2,
    )


def _step(S_churn, S_min, S_max, S_noise, keys, denoise, xt, row, state):
    sigma = row.sigma
    highest = jnp.minimum(S_churn / row.steps.astype(sigma.dtype), 2**0.5 - 1)
    gamma = jnp.where((sigma >= S_min) & (sigma <= S_max), highest, 0)
    hat = row.from_level(row.log_snr - 2 * jnp.log1p(gamma))
    added = jnp.sqrt(jnp.maximum(hat.sigma**2 - sigma**2, 0)) * S_noise
    x_hat = hat.sqrt_alpha_bar * (xt / row.sqrt_alpha_bar + added * step_noise(keys, row, xt))
    churned = (gamma > 0) & (hat.sigma > sigma)
    x_hat = jnp.where(churned, x_hat, xt)
    ends = hat._replace(schedule=None), row._replace(schedule=None)
    row = jax.tree.map(lambda a, b: jnp.where(churned, a, b.astype(a.dtype)), *ends)
    return heun_step(denoise, row, *denoise(x_hat, row.t)[:2]), state
