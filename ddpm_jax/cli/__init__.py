"""The command line: parse the arguments of the commands, and run train and sample.

`train` and `sample` hold the main functions of the scripts train.py and sample.py, which an
installed package has as ddpm-jax-train and ddpm-jax-sample. `recipes` finds and loads recipes,
`arguments` parses settings and configures JAX, `console` drops output that cannot be written. A
command that is also a module, such as `python -m ddpm_jax.evaluate`, has its main function in that
module. Only this package uses tyro.
May import every other package. Only scripts and commands import it.
"""
