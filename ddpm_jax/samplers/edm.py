"""The stochastic sampler of EDM: Algorithm 2, Karras et al. 2022."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.errors import check_at_least
from ddpm_jax.samplers import Sampler, stateless_init, step_noise
from ddpm_jax.samplers.heun import heun_step


def edm(
    *, S_churn: float = 0.0, S_min: float = 0.0, S_max: float = float("inf"), S_noise: float = 1.0
) -> Sampler:
    """Add noise up to sigma_hat = (1 + gamma) sigma, then take Heun's step from there.

    gamma = min(S_churn / steps, sqrt(2) - 1) where S_min <= sigma <= S_max, else 0. The added noise
    is sqrt(sigma_hat^2 - sigma^2) S_noise z. Algorithm 2 uses the grid of `--spacing karras`.
    sigma_hat never exceeds the sigma of t = T-1, where the schedule ends.
    """
    options = {"S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise}
    for name, value in options.items():
        check_at_least(0, **{f"Sampler option {name}": value})
    step = Partial(_step, S_churn, S_min, S_max, S_noise)
    return Sampler(Partial(stateless_init), step, order=2, evaluations=2)


def _step(S_churn, S_min, S_max, S_noise, keys, denoise, xt, row, state):
    sigma = row.sigma
    max_gamma = jnp.minimum(S_churn / row.steps.astype(sigma.dtype), 2**0.5 - 1)
    gamma = jnp.where((sigma >= S_min) & (sigma <= S_max), max_gamma, 0)

    # sigma_hat = (1 + gamma) sigma, limited to the schedule.
    # y_hat = y + sqrt(sigma_hat^2 - sigma^2) S_noise z, where y = x / sqrt(alpha_bar).
    hat = row.from_level(row.log_snr - 2 * jnp.log1p(gamma))
    noise_std = jnp.sqrt(jnp.maximum(hat.sigma**2 - sigma**2, 0)) * S_noise
    # At pure noise the formulas above are infinite, and so would be the derivative of xt / 0.
    signal = jnp.where(row.sqrt_alpha_bar > 0, row.sqrt_alpha_bar, 1)
    x_hat = hat.sqrt_alpha_bar * (xt / signal + noise_std * step_noise(keys, row, xt))

    # Without churn xt and its row stay unchanged.
    churned = (gamma > 0) & (hat.sigma > sigma)
    x_hat = jnp.where(churned, x_hat, xt)
    hat = hat._replace(schedule=None)
    row = row._replace(schedule=None)
    row = jax.tree.map(lambda a, b: jnp.where(churned, a, b.astype(a.dtype)), hat, row)

    x0, eps, _ = denoise(x_hat, row.t)
    return heun_step(denoise, row, x0, eps), state
