"""Read and write models in the diffusers layout, in folders and on the hub; read PyTorch files.

- `hub` downloads and uploads; `pipeline_folder` reads and writes a whole model.
- `unet_folder`, and `part_folder` for Stable Diffusion, read and write networks: `*_config` map the
  settings, `weight_files` reads the tensors, `weight_names` maps their names.
- `stable_diffusion` reads and writes a pipeline with a text encoder, `lora_files` LoRA files,
  `own_settings` what the layout has no place for.
- `scheduler_config` and `latent_scheduler` map a scheduler's JSON by the table in `schedulers`.
- `conv_unet_weights` reads the state dict of a ConvBlock U-Net.
- `torch_pickle`, `untrusted_files` and `json_settings` confine what is read: files may come from
  anyone, so they are read within size limits, and nothing in them is executed.
Only this package has diffusers' names of settings. Imports `generation` and the packages below it.
"""
