"""The mathematics of diffusion: schedules, predictions, losses, likelihood, guidance.

Each file states its equations with their source. A function belongs here if it is a pure function
of arrays; a class, if it is a frozen dataclass that makes one.
Imports only jax, numpy and `ddpm_jax.errors`: no network, no sampler, no data.
"""
