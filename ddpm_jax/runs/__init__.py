"""Run training, and read and write the files of a run.

- `loop` runs the training steps, and saves the state as often as the config asks.
- `directory` checks whether a recipe may resume in a directory, and rolls a run back.
- `checkpoints` writes and reads states, `saved_steps` lists them, `manifest` hashes files.
- `weights` loads the raw or averaged parameters of a step, or rebuilds an average.
- `initial_weights` initialises training from another network.
- `progress` reports on training, `metrics` writes metrics.jsonl and TensorBoard files.
- `sources` opens the run or model named by `--ckpt`.
- `export` and `model_card` write a run in the diffusers layout.
May import every package except `cli`. `loop` itself imports neither `pretrained` nor `export`.
"""
