"""The training step and what it is made of.

`step` makes the step (state, batch) -> (state, metrics) of any loss and any optax optimizer.
`optimizer`, `ema` and `importance` are its parts, each beside its settings. `update_monitor` reads
losses and gradient norms a few steps late.
Imports `diffusion`, `models` and `errors`: a user of `make_train_step` loads no command line, no
config and no sampler.
"""
