"""The recipe of in-process tests of runs on latents."""

from helpers.latent_runs import CONFIG as config

__all__ = ["config"]
