"""What a training run does, and what it leaves on disk.

`loop` runs the steps. `directory`, `steps`, `manifest`, `checkpoints` and `weights` are its files,
`progress` and `metrics` what people read, `sources` what `--ckpt` names, `export` and `model_card`
a run in the layout of diffusers.
Imports everything below the command line; `loop` itself does not know the hub.
"""
