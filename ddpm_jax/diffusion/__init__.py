"""The mathematics of diffusion: schedules, predictions, losses, likelihood, guidance.

Each file states its equations with their source. What belongs here is a pure function of arrays,
or a frozen dataclass that makes one.
Imports only jax, numpy and `ddpm_jax.errors`: no network, no sampler, no data.
"""
