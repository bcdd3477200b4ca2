"""The training step and its parts.

`step` makes the step (state, batch) -> (state, metrics) of any loss and most optax optimizers.
`optimizer`, `ema` and `importance` are its parts; the first two also define their settings.
`lora` trains a low-rank change of frozen parameters.
`update_monitor` reads losses and gradient norms a few steps late.
Imports only `diffusion`, `models`, `draws` and `errors`: no command line, no config, no sampler.
"""
