"""Models in the layout of diffusers, read from folders and the hub, and written.

The names of diffusers' settings appear here alone. Files may come from anyone: each is read within
limits, and nothing in it is executed.
Imports `generation` and what lies below it.
"""
