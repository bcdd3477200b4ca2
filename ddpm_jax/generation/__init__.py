"""From parameters to images: which timesteps a sampler walks, and how batches are drawn.

`sampling` holds the settings. `walk` builds the grid of timesteps and the denoiser from them and
runs the sampler. `scheduler_grids` has the timesteps of diffusers' schedulers, `editing` starts
from images, `recipe` joins network, objective and sampling, `generate` draws batches.
Imports `diffusion`, `models`, `data`, `devices` and `samplers`; reads and writes no files.
"""
