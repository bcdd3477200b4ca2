"""Measurements of trained networks: bits per dimension, and statistics for DPM-Solver-v3.

Functions here return numbers. Commands and figures are elsewhere: `ddpm_jax.evaluate`,
`ddpm_jax.statistics` and `figures`.
Imports only `config` and lower layers (tests/test_layering.py).
"""
