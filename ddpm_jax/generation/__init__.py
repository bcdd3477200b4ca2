"""From parameters to images: which timesteps are walked, and how batches are drawn.

`sampling` holds the settings, `walk` applies them as functions of (objective, sampling),
`scheduler_grids` has the ways through the timesteps of diffusers' schedulers, `editing` starts from
images, `recipe` joins network, objective and sampling, and `generate` draws.
Imports `diffusion`, `models`, `data`, `devices` and `samplers`; knows no files.
"""
