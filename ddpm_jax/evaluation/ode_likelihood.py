"""The likelihood of the probability-flow ODE of a network, in bits per dimension.

With lambda = log SNR / 2 the ODE and the log density along it are

    dx / dlambda = sqrt(alpha_bar) x0_hat - alpha_bar x                 Eq. 13, Song et al. 2021
    d log p(x) / dlambda = -div = alpha_bar d - sqrt(alpha_bar) tr(d x0_hat / dx)        Eq. 39

from N(0, I) at the noisiest level with any signal to t = 0. The trace is Hutchinson's estimate: the
mean of s.(d x0_hat / dx) s over random signs s.

The pixels are 8-bit numbers, and the state z at t = 0 has some noise left. With q(z | x0) that
noise and p(x0 | z) the decoder of the variational bound,

    -log P(x0) <= E[-log p(x0 | z) + log q(z | x0) - log p(z)],

so the number can be compared with the variational bound, whose term at t = 0 it shares.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax import draws
from ddpm_jax.data import Batch
from ddpm_jax.diffusion.likelihood import bound_term
from ddpm_jax.diffusion.posterior import Variance
from ddpm_jax.diffusion.prediction import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedule import NoiseSchedule, q_sample
from ddpm_jax.errors import check
from ddpm_jax.evaluation.network_batches import network_batches
from ddpm_jax.evaluation.standard_error import standard_error
from ddpm_jax.generation.model_spec import ModelSpec
from ddpm_jax.models import Params

STEPS = 50
"""Runge-Kutta steps of order 4. Each evaluates the network four times."""
NODES = np.array([0, 0.5, 0.5, 1], np.float32)
WEIGHTS = np.array([1, 2, 2, 1], np.float32) / 6
PROBES = 2
"""Sign vectors per image. Two show how much the trace depends on them."""


class OdeBits(NamedTuple):
    """Bits per dimension of each image, once for each of its sign vectors."""

    bits: Float[np.ndarray, "n probes"]

    @property
    def mean(self) -> float:
        """The mean over all images."""
        return float(self.bits.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean, by the spread over images.

        Raise ValueError for fewer than two images.
        """
        return float(standard_error(self.bits.mean(1)))

    @property
    def trace_error(self) -> float:
        """The part of `error` that comes from Hutchinson's estimate of the trace."""
        variances = self.bits.var(1, ddof=1)
        return float(np.sqrt(variances.mean() / self.bits.size))


def ode_bits(
    spec: ModelSpec,
    params: Params,
    batch: Batch,
    batch_size: int,
    seed: int,
    variance: Variance | None = None,
    steps: int = STEPS,
    on_step: Callable[[], object] = lambda: None,
) -> OdeBits:
    """The bits per dimension of each image of `batch`.

    The noise and the signs of image i depend only on (seed, i). `variance` is that of the decoder,
    by default the objective's. `on_step()` is called after each step of each batch.
    Raise ValueError if a number is not finite.
    """
    schedule = spec.objective.noise_schedule
    variance = variance or spec.objective.variance
    bits = []
    for keys, x0, network in network_batches(spec, params, batch, batch_size, seed):
        network, target = spec.objective.network_and_target(network)
        # Do not clip x0: the trace would miss the jumps of the derivative.
        denoise = make_denoiser(schedule, network, target, None)
        decoder, log_q, z = _encode(keys, schedule, denoise, x0, variance)
        signs = random_signs(keys, x0.shape[1:], PROBES)
        log_p = log_density(schedule, denoise, z, signs, steps, on_step)  # (b, probes)
        nats = np.asarray(log_q, np.float64)[:, None] - log_p
        bits.append(np.asarray(decoder)[:, None] + nats / (x0[0].size * math.log(2)))
    result = np.concatenate(bits)[: len(batch["image"])]
    check(
        bool(np.isfinite(result).all()),
        "The likelihood is not finite: look for NaN in the weights.",
    )
    return OdeBits(result)


def random_signs(keys: Array, shape: tuple[int, ...], probes: int) -> Float[Array, "probes b ..."]:
    """Sign vectors of each image, drawn with its own key."""
    draws_of = [draws.uniform(draws.fold_in(keys, 1 + i), shape) for i in range(probes)]
    return jnp.where(jnp.stack(draws_of) < 0.5, 1.0, -1.0).astype(jnp.float32)


@jax.jit(static_argnames="variance")
def _encode(keys, schedule, denoise, x0, variance):
    """-log p(x0 | z) in bits per dimension, log q(z | x0) in nats, and z, the state at t = 0."""
    t = jnp.zeros(x0.shape[:1], jnp.int32)
    eps = draws.normal(draws.fold_in(keys, 0), x0.shape[1:])
    z = q_sample(schedule, x0, t, eps)
    prediction = denoise(z, jnp.int32(0))
    prediction = prediction._replace(x0=jnp.clip(prediction.x0, -1, 1))
    decoder = bound_term(schedule, prediction, x0, z, t, variance)
    log_std = jnp.log(schedule.sqrt_one_minus_alpha_bar[0])
    return decoder, log_normal(eps) - x0[0].size * log_std, z


def log_density(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    z: Float[Array, "b h w c"],
    signs: Float[Array, "probes b h w c"],
    steps: int = STEPS,
    on_step: Callable[[], object] = lambda: None,
) -> Float[np.ndarray, "b probes"]:
    """log p of the states z at t = 0, in nats, with one estimate of the trace per sign vector.

    `denoise` must not limit x0. The steps are equal in log SNR.
    """
    log_snr = np.asarray(schedule.log_snr, np.float64)
    log_snr = log_snr[np.isfinite(log_snr)]
    lambdas, h = np.linspace(log_snr[0] / 2, log_snr[-1] / 2, steps, endpoint=False, retstep=True)
    state = _start(z, signs)
    for lambda_ in lambdas:
        interval = np.array([lambda_, h], np.float32)
        state = _runge_kutta_step(schedule, denoise, signs, state, interval)
        # JAX returns before it has computed. Block, so that progress bars count finished work.
        jax.block_until_ready(state)
        on_step()
    xT, divergence = state
    log_p = np.asarray(log_normal(xT), np.float64)[:, None]
    return log_p + np.asarray(divergence, np.float64).T


@jax.jit
def _start(z, signs):
    """The first state: z, and a divergence of 0 (probes, b).

    It is placed on the devices like the later ones. Otherwise the first step would compile a
    program of its own.
    """
    return z, 0 * jnp.sum(signs, (2, 3, 4))


@jax.jit
def _runge_kutta_step(schedule, denoise, signs, state, lambda_and_h):
    """One step of the classical method of order 4. A scan compiles the network once."""
    lambda_, h = lambda_and_h

    def moved(by, slopes):
        return jax.tree.map(lambda x, slope: x + by * slope, state, slopes)

    def stage(carry, node_and_weight):
        slopes, mean = carry
        node, weight = node_and_weight
        xt, _ = moved(node * h, slopes)
        slopes = _slope(schedule, denoise, signs, xt, lambda_ + node * h)
        mean = jax.tree.map(lambda total, slope: total + weight * slope, mean, slopes)
        return (slopes, mean), None

    zero = jax.tree.map(jnp.zeros_like, state)
    (_, mean), _ = jax.lax.scan(stage, (zero, zero), (jnp.array(NODES), jnp.array(WEIGHTS)))
    return moved(h, mean)


def _slope(schedule, denoise, signs, xt, lambda_):
    """dx / dlambda (b, h, w, c), and an estimate of its divergence (probes, b) per sign vector."""
    t = schedule.timestep_at(2 * lambda_)
    alpha_bar = jax.nn.sigmoid(2 * lambda_)
    signal = jnp.sqrt(alpha_bar)
    x0, push_forward = jax.linearize(lambda xt: denoise(xt, t).x0, xt)
    trace = jnp.stack([jnp.sum(s * push_forward(s), (1, 2, 3)) for s in signs])  # (probes, b)
    return signal * x0 - alpha_bar * xt, signal * trace - alpha_bar * xt[0].size


def log_normal(x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """log N(x; 0, I) of each example, in nats."""
    return -0.5 * jnp.sum(x**2 + math.log(2 * math.pi), (1, 2, 3))
