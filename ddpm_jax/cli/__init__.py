"""The commands: their arguments and their mains.

`recipes` finds the recipes of a folder, `arguments` parses settings and makes JAX's. `train` and
`sample` are the mains of the two scripts. A command that is also a module, such as
`python -m ddpm_jax.evaluate`, keeps its main in that module. tyro appears here alone.
Imports everything; nothing but the commands imports it.
"""
