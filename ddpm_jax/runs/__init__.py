"""Run training, and read and write the files of a run.

- `loop` runs the training steps; `tasks` holds what differs between runs, `latents` encodes images.
- `directory` checks whether a recipe may resume in a directory, and rolls a run back.
- `checkpoints` writes and reads states, `saved_steps` lists them, `manifest` hashes files.
- `weights` loads the raw or averaged parameters of a step, or rebuilds an average.
- `initial_weights` initialises training from another network.
- `progress` reports, `metrics` writes the log, `grids` draws samples, `evaluation` measures them.
- `sources` opens the run or model named by `--ckpt`, `text_model` one that draws from prompts.
- `export` and `model_card` write a run in the diffusers layout, `text_folder` one on latents.
May import every package except `cli`. `loop` does not know the hub: `on_save` uploads.
"""
