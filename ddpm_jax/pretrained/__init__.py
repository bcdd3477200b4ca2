"""Models in the layout of diffusers, read from folders and the hub, and written.

Names of diffusers appear here and nowhere else. Files may come from anyone: each is read within
limits, and nothing in it is executed.
Imports `generation` and what lies below it.
"""
