"""How good a network is: measurements of trained networks, without commands or pictures.

Imports `config` and what lies below it.
"""
