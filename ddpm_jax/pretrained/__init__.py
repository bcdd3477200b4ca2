"""Nets in the layout of diffusers: read, whoever they are from, and written."""
