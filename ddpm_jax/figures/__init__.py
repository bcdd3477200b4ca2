"""Draw grids of images, strips, animations and plots.

Imports `data`, `files` and `generation`. matplotlib is loaded when a plot is drawn.
"""
