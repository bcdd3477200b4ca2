"""Kernels: forms of plain operations that are faster on one kind of device.

Those for CPUs have derivatives of every order, like the plain forms, and are tested against them.
Attention by cuDNN has a first derivative in reverse mode, and needs a GPU to be tested.
`switch.use_kernels` or DDPM_JAX_KERNELS=off turns all of them off.
Imports only jax, numpy and jaxtyping.
"""
