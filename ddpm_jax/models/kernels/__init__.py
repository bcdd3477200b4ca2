"""Hand-written kernels: faster forms of plain operations, where they are measured to pay.

Each is differentiable like the plain form and tested against it.
Imports only jax and numpy.
"""
