"""The training step and its parts.

`step` makes the step (state, batch) -> (state, metrics) of any loss and any optax optimizer.
`optimizer`, `ema` and `importance` are its parts; the first two also define their settings.
`lora` trains a low-rank change of frozen parameters.
`update_monitor` reads losses and gradient norms a few steps late.
Imports only `diffusion`, `models`, `draws` and `errors`: a user of `make_train_step` loads no
command line, no config and no sampler.
"""
