"""Hand-written kernels: faster forms of plain operations, used where they are measured to pay.

Each is as differentiable as the plain form and is tested against it. Imports only jax and numpy.
"""
