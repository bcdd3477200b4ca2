"""Count the floating-point operations that a network must do, from its jaxpr.

They are the multiplications and additions of matrix products and convolutions. Products with the
zeros of a padding do not count, and neither do elementwise operations. The body of a loop counts as
often as the loop runs, and of several branches the one with the most operations.
"""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from ddpm_jax.models import Model
from ddpm_jax.models.kernels.switch import kernels_are_on, use_kernels

PASSES_OF_A_STEP = 3
"""Forward passes that have the operations of a training step: its backward pass has those of two.
"""


def of_image(model: Model, dtype: Any) -> float:
    """The operations of a forward pass of one image."""
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)

    def apply(params, xt, t):
        return model.apply(params, xt, t, dtype=jnp.dtype(dtype))

    return count(apply, model.shapes(), image, t)


def count(function: Callable, *shapes: Any) -> float:
    """The operations of a function of arrays of these shapes.

    Raise ValueError for a loop of unknown length.
    """
    were_on = kernels_are_on()
    # A jaxpr does not show what is inside a kernel of this package.
    use_kernels(False)
    try:
        return _count(jax.make_jaxpr(function)(*shapes).jaxpr)
    finally:
        use_kernels(were_on)


def _count(jaxpr: Jaxpr) -> float:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: JaxprEqn) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError("The length of a loop is unknown: count a function with loops by scan.")
    if name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs."""
    settings = equation.params.values()
    flat = chain.from_iterable(x if isinstance(x, tuple | list) else [x] for x in settings)
    return [getattr(x, "jaxpr", x) for x in flat if isinstance(x, Jaxpr | ClosedJaxpr)]


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    params = equation.params
    images, kernel = (variable.aval.shape for variable in equation.invars)
    result = equation.outvars[0].aval.shape
    batch, features, *sides = params["dimension_numbers"].out_spec
    _, inputs, *taps = params["dimension_numbers"].rhs_spec
    _, _, *image_sides = params["dimension_numbers"].lhs_spec
    products = math.prod(
        _products_along_a_side(
            images[image_side],
            kernel[tap],
            result[side],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
        for i, (image_side, tap, side) in enumerate(zip(image_sides, taps, sides, strict=True))
    )
    return 2.0 * result[batch] * result[features] * kernel[inputs] * products


def _products_along_a_side(
    size: int, taps: int, result: int, stride: int, before: int, spread: int, dilation: int
) -> int:
    """The pairs of result and tap that lie on a pixel, not on padding or between the pixels."""
    pixel = stride * np.arange(result)[:, None] + dilation * np.arange(taps)[None] - before
    inside = (pixel >= 0) & (pixel <= spread * (size - 1)) & (pixel % spread == 0)
    return np.count_nonzero(inside)
