"""Pictures for people: grids of images, strips, animations and plots.

Imports only `data.pixels`, `files` and `errors`. matplotlib is loaded when a plot is drawn.
"""
