"""Samplers: pairs `Sampler(init, step)`, and the `lax.scan` that runs any of them to clean data.

Each file of this package is one sampler. The module's name is the sampler's name, and the keyword
arguments of the function of that name are its options. `_multistep` is shared by several samplers.
The noise of a sample depends only on its own key and the row's index, not on the rest of its batch.
Imports only `diffusion`, `draws` and `errors`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from ddpm_jax import draws
from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.errors import check, check_seed, check_shape, check_type


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """A pair of pure functions.

    init(xT) -> state                       the history of a multistep method, or ()
    step(keys, denoise, xt, row, state) -> (x_next, state)

    A function that is no pytree becomes a `jax.tree_util.Partial`. The options that a Partial holds
    are traced, if they are numbers, so changing one does not recompile.
    """

    init: Callable[[Array], Any]
    step: Callable[[Array, Denoiser, Array, GridRow, Any], tuple[Array, Any]]
    order: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Order of convergence to the probability-flow ODE when the step adds no noise; None for a
    method that always adds noise."""
    evaluations: int = dataclasses.field(default=1, metadata={"static": True})
    """Denoiser evaluations per step."""
    startup_evaluations: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    """Extra evaluations in each of the first steps. The step to clean data never has any."""

    def __post_init__(self):
        for name in ("init", "step"):
            function = getattr(self, name)
            # JAX makes samplers of other leaves, too, such as shardings.
            if callable(function) and jax.tree_util.all_leaves([function]):
                object.__setattr__(self, name, Partial(function))

    def num_evaluations(self, steps: int) -> int:
        """The number of denoiser evaluations in `steps` steps from noise to clean data.

        From pure noise, pndm takes one step of its startup less.
        """
        return self.evaluations * steps + sum(self.startup_evaluations[: steps - 1])


def stateless_init(xT: Array) -> tuple:
    """The `init` of a method without state."""
    return ()


def names() -> list[str]:
    """The names of all samplers, which are the public modules of this package."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def factory(name: str) -> Callable[..., Sampler]:
    """The function that makes the sampler `name`. Raise ValueError for an unknown name."""
    known = names()
    if name not in known:
        raise ValueError(f"Unknown sampler {name!r}: choose one of {', '.join(known)}.")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def options_of(name: str) -> dict[str, Any]:
    """The type of each option of a sampler. Raise ValueError for an unknown name."""
    types = get_type_hints(factory(name))
    return {option: types[option] for option in types if option != "return"}


def make(name: str, **options) -> Sampler:
    """Make the sampler `name` with its options.

    Raise ValueError for an unknown name or option, and for a value of another type or out of range.
    """
    types = options_of(name)
    for option in options:
        if option not in types:
            known = ", ".join(types) or "none"
            raise ValueError(f"Sampler {name} has no option {option!r}; it has: {known}.")
        check_type(f"Sampler option {option}", options[option], types[option])
    typed = {option: _as_float(value, types[option]) for option, value in options.items()}
    return factory(name)(**typed)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where `make` does, but do not open files that options name."""
    types = options_of(name)
    file_options = {option for option in options if str in get_args(types.get(option))}
    make(name, **{option: options[option] for option in options if option not in file_options})


def _as_float(value: Any, option_type: Any) -> Any:
    """Convert an int to float where the option is a float, so that 1 and 1.0 compile once."""
    accepted = get_args(option_type) or (option_type,)
    if type(value) is int and float in accepted:
        return float(value)
    return value


def sample_keys(seed: int, indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key per sample, a function of (seed, sample index) alone.

    Raise ValueError for a seed outside [0, 2**32), and unless the indices are a row of integers.
    """
    check_seed(seed)
    indices = jnp.asarray(indices)
    check(
        indices.ndim == 1 and jnp.issubdtype(indices.dtype, jnp.integer),
        f"indices must be integers (b,), not {indices.dtype} of shape {indices.shape}: give "
        "jnp.arange(b) for the first b samples.",
    )
    return draws.fold_in_each(draws.make_key(seed), indices)


def initial_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """xT ~ N(0, I), drawn with each sample's own key. `shape` is (h, w, c)."""
    return draws.normal(draws.fold_in(keys, 0), shape)


def step_noise(
    keys: Key[Array, " b"], row: GridRow, xt: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """The noise z ~ N(0, I) of one step, drawn with each sample's own key and the row's index.

    It is drawn in float32 and returned in the dtype of xt.
    """
    return draws.normal(draws.fold_in(keys, row.i + 1), xt.shape[1:]).astype(xt.dtype)


def sample(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    xT: Float[Array, "b h w c"],
    *,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """Draw x0 (b, h, w, c) from xT by one `lax.scan`.

    With `trajectory`, return all states (steps + 1, b, h, w, c) from xT to x0. The scan is compiled
    once for a denoiser: arrays that its network closes over keep their values, so give parameters
    as those of a Partial. Raise ValueError unless there is one key per image, xT has the type of
    the grid, float32, and the denoiser returns a `Prediction`.
    """
    _check_start(keys, sampler, grid, xT)
    start = _start(sampler, xT)
    (x0, _), states = _walk_jit(keys, _pytree(denoise), sampler, grid, start, trajectory)
    return jnp.concatenate([xT[None], states]) if trajectory else x0


def sample_in_chunks(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    xT: Float[Array, "b h w c"],
    chunks: int = 1,
) -> Iterator[Float[Array, "b h w c"]]:
    """Yield xt after each of `chunks` equal parts of the grid, for progress bars and previews.

    The last one is x0. All parts share one compiled program. It has no host callback, because JAX
    does not keep programs with callbacks in the persistent compilation cache. Raise ValueError
    unless `chunks` divides the number of steps, and as `sample` does.
    """
    _check_start(keys, sampler, grid, xT)
    steps = len(grid.i)
    if chunks < 1 or steps % chunks:
        raise ValueError(f"Cannot split {steps} steps into {chunks} equal chunks: use a divisor.")
    carry = _start(sampler, xT)
    for part in grid.split(chunks):
        carry, _ = _walk_jit(keys, _pytree(denoise), sampler, part, carry)
        yield carry[0]


def _check_start(keys, sampler, grid, xT):
    kind = type(sampler).__name__
    check(
        isinstance(sampler, Sampler),
        f"The sampler must be a Sampler, not a {kind}: call its function, as in dj.ddpm().",
    )
    kind = type(grid).__name__
    check(isinstance(grid, GridRow), f"The grid must be one of make_grid, not a {kind}.")
    draws.check_typed(keys)
    check(xT.ndim == 4, f"xT must be images (b, h, w, c), not of shape {xT.shape}.")
    check_shape(xT.shape[:1], keys=keys)
    dtype = grid.sqrt_alpha_bar.dtype
    check(xT.dtype == dtype, f"xT must be {dtype}, not {xT.dtype}: cast it.")


def _predict(denoise, xt, t):
    prediction = denoise(xt, t)
    check(
        isinstance(prediction, Prediction),
        "The denoiser must return a Prediction: make one of the network by make_denoiser.",
    )
    return prediction


def _walk(keys, denoise, sampler, grid, carry, trajectory=False):
    denoise = Partial(_predict, denoise)

    # The schedule is the same for all rows, so it is not scanned over.
    def body(carry, row):
        xt, state = carry
        row = row._replace(schedule=grid.schedule)
        x_next, state = sampler.step(keys, denoise, xt, row, state)
        return (x_next, state), x_next if trajectory else None

    return jax.lax.scan(body, carry, grid._replace(schedule=None))


@jax.jit
def _start(sampler, xT):
    """The first carry of the scan.

    This function is jitted so that the first carry is placed on the devices like the later ones.
    Otherwise the first chunk would compile a program of its own.
    """
    return xT, sampler.init(xT)


_walk_jit = jax.jit(_walk, static_argnames="trajectory")


def _pytree(function: Callable) -> Callable:
    """Wrap a function in a Partial, which jit takes as an argument.

    A Partial is returned unchanged, so that new values of its leaves do not recompile.
    """
    return function if isinstance(function, Partial) else Partial(function)
