"""The commands: their arguments and their mains.

`train` and `sample` are the mains of the two scripts. `recipes` finds the recipes of a folder,
`arguments` parses settings and sets up JAX. A command that is also a module, such as
`python -m ddpm_jax.evaluate`, keeps its main in that module. Besides `config`, only this package
uses tyro. Imports every other package; only the commands import it.
"""
