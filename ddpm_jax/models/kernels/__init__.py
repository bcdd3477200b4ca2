"""Hand-written kernels: forms of plain operations that are faster on a CPU.

Each has derivatives of every order, like the plain form, and is tested against it.
`switch.use_kernels` or DDPM_JAX_KERNELS=off turns all of them off.
Imports only jax, numpy and jaxtyping.
"""
