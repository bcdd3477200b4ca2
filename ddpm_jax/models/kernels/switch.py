"""The switch of the kernels: an environment variable and a function."""

import os

import jax

VARIABLE = "DDPM_JAX_KERNELS"
_SETTINGS = {"on": True, "off": False}
_chosen: bool | None = None


def use_kernels(enabled: bool) -> None:
    """Turn the kernels on or off everywhere, in place of DDPM_JAX_KERNELS.

    The plain forms give the same values within rounding. Turn the kernels off for a transformation
    or a compiler that does not know their primitives. With a GPU, turn them off for forward mode
    and second derivatives of attention in bfloat16 or float16. This clears JAX's caches, so that
    functions that were compiled with the other setting are compiled again.
    """
    global _chosen
    if enabled != kernels_are_on():
        jax.clear_caches()
    _chosen = enabled


def kernels_are_on() -> bool:
    """Whether the kernels are used. Raise ValueError for an unknown DDPM_JAX_KERNELS."""
    if _chosen is not None:
        return _chosen
    value = os.environ.get(VARIABLE, "on")
    if value not in _SETTINGS:
        raise ValueError(f"{VARIABLE} must be on or off, not {value!r}: change or unset it.")
    return _SETTINGS[value]
