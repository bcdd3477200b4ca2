"""Pseudo numerical methods for diffusion models: Liu et al. 2022."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.samplers import Sampler
from ddpm_jax.samplers._multistep import change_from_newest, history, integral_weights, known, remember, uniform_moments
from ddpm_jax.samplers.euler import euler_step


def pndm(*, runge_kutta: bool = True, compat: bool = False) -> Sampler:
    """DDIM's step with the mean of eps over it, from the four newest by Adams and Bashforth's weights (PLMS, Eq. 12).

    The weights, 55/24, -59/24, 37/24, -9/24, are for timesteps at equal distances. The first three steps are Runge and
    Kutta's (PRK, Eq. 13) of four evaluations each, or else the first is Heun's and the order rises from there.
    compat: walks from t to t - T // steps as diffusers does.
    """
    start, extra = (_runge_kutta, 9) if runge_kutta else (_heun, 1)
    until = 3 if runge_kutta else 1
    return Sampler(history(4), Partial(_step, Partial(start), until), order=2, extra=extra, even_stride=compat)


def _step(start, until, keys, denoise, xt, row, memory):
    x0, eps, _ = denoise(xt, row.t)
    starting = (known(memory[1]) < until) & jnp.isfinite(row.h)
    values, positions = memory = remember(memory, eps, row.i)
    nodes = -jnp.arange(4, dtype=eps.dtype)
    weights = integral_weights(
        nodes, uniform_moments(4, eps.dtype), jnp.where(jnp.isfinite(row.h), known(positions), 1)
    )
    change = jax.lax.cond(
        starting, lambda: start(denoise, row, x0, eps) - eps, lambda: change_from_newest(weights, values)
    )
    return euler_step(row, x0, eps, change), memory


def _heun(denoise, row, x0, eps):
    return (eps + denoise(euler_step(row, x0, eps), row.t_next_finite).eps) / 2


def _runge_kutta(denoise, row, x0, eps):
    t_middle = (row.t.astype(eps.dtype) + row.t_next_finite.astype(eps.dtype)) / 2
    a, b = row.schedule.at(t_middle)
    half = row._replace(sqrt_alpha_bar_next=a, sqrt_one_minus_alpha_bar_next=b)
    eps_2 = denoise(euler_step(half, x0, eps), t_middle).eps
    eps_3 = denoise(euler_step(half, x0, eps, eps_2 - eps), t_middle).eps
    eps_4 = denoise(euler_step(row, x0, eps, eps_3 - eps), row.t_next_finite).eps
    return (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6
