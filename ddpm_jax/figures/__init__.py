"""Draw grids of images, strips, animations and plots.

Imports `data`, `files`, `errors` and `generation`. matplotlib is loaded when a plot is drawn.
"""
