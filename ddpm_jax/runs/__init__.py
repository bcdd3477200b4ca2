"""Run training, and read and write the files of a run.

- `loop` runs and saves the training steps, and decides how much a kill can lose.
- `directory` checks whether a recipe may resume in a directory, and rolls a run back.
- `checkpoints` writes and reads states, `steps` lists the saved steps, `manifest` hashes files.
- `weights` reads or rebuilds averaged parameters, `initial_weights` starts from another network.
- `progress` reports on training, `metrics` writes metrics.jsonl and TensorBoard files.
- `sources` opens the run or model named by `--ckpt`.
- `export` and `model_card` write a run in the diffusers layout.
Imports everything below the command line. `loop` does not import `pretrained` or `export`.
"""
