"""From parameters to images: the timesteps, the denoiser and the batches of a sampling.

`sampling` holds the settings. `walk` builds the grid of timesteps and the denoiser from them and
runs the sampler. `scheduler_grids` has the timesteps of diffusers' schedulers, `editing` starts
from images, `repaint` repeats stretches of steps for it, `model_spec` joins network, objective and
sampling, `conditions` gives each sample its condition, `generate` draws batches, `torch_noise`
draws PyTorch's numbers, `attention_maps` shows where a network looked.
Imports `diffusion`, `models`, `data`, `devices`, `samplers`, `draws` and `errors`; writes no files.
"""
