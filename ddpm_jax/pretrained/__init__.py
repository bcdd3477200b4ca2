"""Models in the diffusers layout: read from folders and from the hub, and written.

The names of diffusers settings appear only in this package. Files may come from anyone: they are
read within size limits, and nothing in them is executed.
Imports `generation` and the packages below it.
"""
