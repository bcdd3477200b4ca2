"""The command line: parse the arguments of the commands, and run train.py and sample.py.

`train` and `sample` hold the main functions of the two scripts. `recipes` finds the recipes of a
folder, `arguments` parses settings and configures JAX. A command that is also a module, such as
`python -m ddpm_jax.evaluate`, has its main function in that module. Only this package uses tyro.
May import every other package. Only scripts and commands import it.
"""
