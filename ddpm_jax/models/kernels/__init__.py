"""Kernels: forms of plain operations that are faster on one kind of device.

Each is tested against the plain form. Those for CPUs have derivatives of every order, too;
attention by cuDNN has only a gradient.
`switch.use_kernels` or DDPM_JAX_KERNELS=off turns all of them off.
Imports only jax, numpy and jaxtyping.
"""
