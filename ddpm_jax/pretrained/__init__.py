"""Read and write models in the diffusers layout, in folders and on the hub.

The names of diffusers settings appear only in this package. Files may come from anyone: they are
read within size limits, and nothing in them is executed.
Imports `generation` and the packages below it.
"""
