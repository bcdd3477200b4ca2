"""EDM's preconditioning and loss weight for any network (Karras et al. 2022, Table 1, section 5).

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),    x = x0 + sigma eps = xt / sqrt(alpha_bar)
                                                                     Eq. 7, Karras et al. 2022
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.diffusion.prediction import Network, split_output
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example


def precondition(schedule: NoiseSchedule, network: Network, sigma_data: float = 0.5) -> Network:
    """The network (xt, t) -> x0_hat that evaluates F = `network` with EDM's preconditioning.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    c_noise = t

    The input and target of F have unit variance at every sigma. `sigma_data` is the standard
    deviation of the images in [-1, 1]. EDM's own c_noise is ln(sigma) / 4. The networks here expect
    t in 0..T-1, which is linear in ln(sigma) too on the schedule edm. F's output for the variance
    passes through unchanged. The result is a pytree (a `jax.tree_util.Partial`).
    """
    network = network if isinstance(network, Partial) else Partial(network)
    return Partial(_precondition, sigma_data, schedule, network)


def _precondition(sigma_data, schedule: NoiseSchedule, network: Network, xt, t):
    sqrt_alpha_bar, std = per_example(schedule.signal_and_noise(t), xt)
    # total = sqrt(alpha_bar) sqrt(sigma^2 + sigma_data^2). At zero SNR it is finite, sigma is not.
    total = jnp.sqrt(std**2 + (sqrt_alpha_bar * sigma_data) ** 2)
    c_skip_x = sqrt_alpha_bar * (sigma_data / total) ** 2 * xt
    c_out = sigma_data * std / total
    output, log_var = split_output(network(xt / total, t), xt)
    x0 = c_skip_x + c_out * output
    return x0 if log_var is None else jnp.concatenate([x0, log_var], -1)


def weight(snr: Float[Array, " b"], sigma_data: float = 0.5) -> Float[Array, " b"]:
    """lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2.

    It gives the error of F the same weight at every sigma.
    """
    return snr + 1 / sigma_data**2
