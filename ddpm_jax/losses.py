"""Training losses, one number an example.

L_simple = E_{t, x0, eps} || eps - eps_theta(sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps, t) ||^2
                                                                               Eq. 14, Ho et al. 2020
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddpm_jax.prediction import Network, Target, regression_target
from ddpm_jax.schedule import NoiseSchedule, per_example, q_sample


def simple_loss(
    keys: Key[Array, " b"],
    schedule: NoiseSchedule,
    network: Network,
    x0: Float[Array, "b h w c"],
    target: Target = "eps",
) -> Float[Array, " b"]:
    """Mean squared error of each example at its own uniform t: Eq. 14, Ho et al. 2020, or its x0 or v form.

    `keys` holds one key an example, so t and eps do not depend on how the batch is split over devices.
    """
    t, eps = jax.vmap(lambda key: _draw(key, schedule.timesteps, x0.shape[1:]))(keys)
    xt = q_sample(schedule, x0, t, eps)
    output_target = regression_target(target, x0, eps, *per_example(schedule.at(t), x0))
    return jnp.mean((network(xt, t) - output_target) ** 2, axis=(1, 2, 3))


def _draw(key, timesteps: int, shape: tuple[int, ...]):
    key_t, key_eps = jax.random.split(key)
    return jax.random.randint(key_t, (), 0, timesteps), jax.random.normal(key_eps, shape)
