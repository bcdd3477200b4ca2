"""The commands: their arguments and their mains.

tyro appears here and in `config`. A command that is also a module (`python -m ddpm_jax.evaluate`)
keeps its main in that module.
Imports everything; nothing but the commands imports it.
"""
