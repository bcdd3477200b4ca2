"""The mathematics of diffusion: schedules, predictions, losses, likelihood, guidance.

Each file states its equations with their source. All functions are pure, and all classes are frozen
dataclasses or named tuples.
Imports only jax, numpy, jaxtyping, `ddpm_jax.draws` and `ddpm_jax.errors`: no network, no sampler,
no data.
"""
