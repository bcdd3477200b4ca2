"""Measurements: samples against reference images, likelihoods, statistics for DPM-Solver-v3.

Distances are computed by NumPy in float64 on feature vectors, a block of pairs at a time, so they
depend neither on the devices nor on the batch size. `features` makes the vectors, `measures` names
what is measured, `results` makes tables and says which results can be compared.
Functions here return numbers and texts. Commands and figures are elsewhere: `ddpm_jax.evaluate`,
`ddpm_jax.statistics` and `figures`.
Imports only `config` and lower layers (tests/test_layering.py).
"""
