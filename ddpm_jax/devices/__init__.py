"""Devices, hosts, memory and signals: everything that depends on the machine.

`parallel` is the only file with `jax.pmap`. `platform` configures JAX before its first use of a
device.
Imports only jax, numpy and `ddpm_jax.errors`.
"""
