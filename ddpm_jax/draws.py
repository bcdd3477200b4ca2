"""Random keys and draws: the same bits under every default of JAX.

Keys are made as threefry2x32 keys by name. Numbers are drawn as float32 or a named integer type,
and as with jax_threefry_partitionable, which is JAX's default.
A function here takes one key, or an array of keys (b,) that it uses one by one. `rbg` and
`unsafe_rbg` are refused in an array: JAX draws all its numbers from the first key, so the noise of
an example would depend on its batch.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Key, UInt

IMPLEMENTATION = "threefry2x32"
NOT_ONE_BY_ONE = ("rbg", "unsafe_rbg")


def make_key(seed: ArrayLike) -> Key[Array, ""]:
    """The key of a seed."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def fold_in(keys: Key[Array, "*b"], number: ArrayLike) -> Key[Array, "*b"]:
    """Derive a key from each key and a number in [0, 2**32).

    For threefry2x32, number i gives the i-th key of `jax.random.split`. But `keys` stay unconsumed,
    so that others can be derived from them under jax_debug_key_reuse.
    """
    return _one_by_one(jax.random.fold_in, keys, jnp.asarray(number, jnp.uint32))


def fold_in_name(keys: Key[Array, "*b"], name: str) -> Key[Array, "*b"]:
    """Derive from each key the key of a named random stream, such as "dropout"."""
    return fold_in(keys, zlib.crc32(name.encode()))


def fold_in_each(key: Key[Array, ""], numbers: Integer[Array, " b"]) -> Key[Array, " b"]:
    """Derive one key per number from a single key."""
    return _one_by_one(jax.random.fold_in, jnp.broadcast_to(key, numbers.shape), numbers)


def normal(keys: Key[Array, "*b"], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """float32 numbers from N(0, 1), an array of this shape per key."""
    return _one_by_one(jax.random.normal, keys, options=(shape, jnp.float32))


def uniform(keys: Key[Array, "*b"], shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """float32 numbers from U[0, 1), an array of this shape per key."""
    return _one_by_one(jax.random.uniform, keys, options=(shape, jnp.float32))


def integers(keys: Key[Array, "*b"], stop: int) -> Int[Array, "*b"]:
    """int32 numbers, uniform on 0..stop-1, one per key."""
    return _one_by_one(jax.random.randint, keys, options=((), 0, stop, jnp.int32))


def bits16(keys: Key[Array, "*b"], shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """16 random bits per entry, an array of this shape per key."""
    return _one_by_one(jax.random.bits, keys, options=(shape, jnp.uint16))


def check_typed(keys: Array) -> None:
    """Raise ValueError for a key of `jax.random.PRNGKey`, which is an array of numbers."""
    if not jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(f"Keys of {keys.dtype} are not typed: make them with jax.random.key.")


def _one_by_one(
    draw: Callable[..., Array], keys: Array, *numbers: Array, options: tuple[Any, ...] = ()
) -> Any:
    """Call `draw` with a single key, or with each key of (b,) and its row of the numbers."""
    check_typed(keys)
    implementation = jax.random.key_impl(keys)
    if keys.ndim and implementation in NOT_ONE_BY_ONE:
        raise ValueError(
            f"With {implementation} keys the noise of an example depends on its batch: "
            f'make them with jax.random.key(seed, impl="{IMPLEMENTATION}").'
        )
    # An operation keeps the setting under which it was traced.
    with jax.threefry_partitionable(True):
        return _draw(draw, options, keys, *numbers)


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _draw(draw, options, keys, *numbers):
    def draw_one(key, *numbers):
        return draw(key, *numbers, *options)

    if not keys.ndim:
        return draw_one(keys, *numbers)
    in_axes = (0, *(0 if number.ndim else None for number in numbers))
    return jax.vmap(draw_one, in_axes)(keys, *numbers)
