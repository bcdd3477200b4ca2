"""The recipe of in-process tests of the commands."""

from helpers.saved_runs import RECIPE as config

__all__ = ["config"]
