"""EDM's preconditioning and loss (Karras et al. 2022, Table 1 and section 5) around any network.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),      x = x0 + sigma eps = xt / sqrt(alpha_bar)          Eq. 7
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddpm_jax.diffusion.prediction import Network, split_output
from ddpm_jax.diffusion.schedule import NoiseSchedule, per_example


def precondition(schedule: NoiseSchedule, network: Network, sigma_data: float = 0.5) -> Network:
    """The network (xt, t) -> x0_hat made of F = `network`, whose input and target have unit variance at every sigma.

    `sigma_data` is the standard deviation of the images in [-1, 1].

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)            c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)     c_noise = t

    EDM's own c_noise is ln(sigma) / 4, for an embedding of its own. Ours expects 0..T-1, and on the schedule edm t is
    as linear in ln(sigma). What F says of the variance is passed on. A `jax.tree_util.Partial`, as is the denoiser.
    """
    network = network if isinstance(network, Partial) else Partial(network)
    return Partial(_precondition, sigma_data, schedule, network)


def _precondition(sigma_data, schedule: NoiseSchedule, network: Network, xt, t):
    sqrt_alpha_bar, std = per_example(schedule.signal_and_noise(t), xt)
    # sqrt(alpha_bar) sqrt(sigma^2 + sigma_data^2): in these terms nothing is infinite where no signal is left.
    total = jnp.sqrt(std**2 + (sqrt_alpha_bar * sigma_data) ** 2)
    c_skip_x = sqrt_alpha_bar * (sigma_data / total) ** 2 * xt
    c_out = sigma_data * std / total
    output, said = split_output(network(xt / total, t), xt)
    x0 = c_skip_x + c_out * output
    return x0 if said is None else jnp.concatenate([x0, said], -1)


def weight(snr: Float[Array, " b"], sigma_data: float = 0.5) -> Float[Array, " b"]:
    """lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2, by which F's own error is unweighted."""
    return snr + 1 / sigma_data**2
