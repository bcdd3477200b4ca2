"""Devices, hosts, memory and signals: what depends on the machine belongs here.

`parallel` is the only file with `jax.pmap`. `platform` makes the settings that JAX needs before its
first use of a device.
Imports only jax, numpy and `ddpm_jax.errors`.
"""
