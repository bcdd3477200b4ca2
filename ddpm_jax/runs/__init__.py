"""What a training run does, and what it leaves on disk.

- `loop` runs the steps and saves them; what a kill loses is decided there.
- `directory` decides whether a recipe may resume in a directory, and rolls back.
- `checkpoints` writes and reads states, `steps` lists those saved, `manifest` hashes their files,
  `weights` reads one average, `initial_weights` starts from another network.
- `progress` reports on training, `metrics` writes metrics.jsonl and TensorBoard.
- `sources` opens what `--ckpt` names, `export` and `model_card` write a run for diffusers.
Imports everything below the command line. `loop` does not import `pretrained` or `export`.
"""
