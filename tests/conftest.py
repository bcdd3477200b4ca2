"""Settings of every test: shapes checked, no implicit promotion, 8 virtual CPU devices."""

import os

from jaxtyping import install_import_hook

install_import_hook("ddpm_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
os.environ.pop("XLA_FLAGS", None)
