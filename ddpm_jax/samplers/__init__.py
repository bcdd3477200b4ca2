"""Walking from noise to data: `Sampler(init, step)` and the one `lax.scan` that runs any of them.

A sampler is one file; its name is the module's, its options are the keyword arguments of the function of that name.
Noise is a function of the sample's own key and the row's index alone: picture i does not depend on the batch.
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

from ddpm_jax.diffusion.grid import GridRow
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.errors import check


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """A pair of pure functions, each a `jax.tree_util.Partial`: options are traced, changing them does not recompile.

    init(xT) -> memory                                           what a multistep method remembers, () for others
    step(keys, denoise, xt, row, state) -> (x_next, state)

    `order` is the order of convergence to the probability-flow ODE where no noise is added, None for a method that
    always adds some. A step asks the denoiser `evaluations` times, the first steps (the last of a walk apart) `extra`
    times more each.
    """

    init: Callable[[Array], Any]
    step: Callable[[Array, Denoiser, Array, GridRow, Any], tuple[Array, Any]]
    order: int | None = dataclasses.field(default=None, metadata={"static": True})
    evaluations: int = dataclasses.field(default=1, metadata={"static": True})
    startup_evaluations: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def num_evaluations(self, steps: int) -> int:
        """How often a walk of so many steps evaluates the denoiser."""
        return self.evaluations * steps + sum(self.startup_evaluations[: steps - 1])


def stateless_init(xT: Array) -> tuple:
    """The `init` of a method that remembers nothing."""
    return ()


def names() -> list[str]:
    """The samplers there are: the modules of this package."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def factory(name: str) -> Callable[..., Sampler]:
    """The function that makes the sampler `name`; raises ValueError listing the names."""
    if name not in names():
        raise ValueError(f"unknown sampler {name!r}; there are: {', '.join(names())}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def options_of(name: str) -> dict[str, Any]:
    """The types of a sampler's options by name; raises ValueError as `find` does."""
    types = get_type_hints(factory(name))
    return {option: types[option] for option in types if option != "return"}


def make(name: str, **options) -> Sampler:
    """The sampler `name` with its options; raises ValueError for an option it does not have."""
    types = options_of(name)
    for option in options:
        check(
            option in types,
            f"sampler {name} has no option {option!r}; it has: {', '.join(types) or 'none'}",
        )
    typed = {option: _as_float(value, types[option]) for option, value in options.items()}
    return factory(name)(**typed)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError as `make` does, without opening a file that an option names."""
    types = options_of(name)
    make(
        name,
        **{
            option: value
            for option, value in options.items()
            if str not in get_args(types.get(option))
        },
    )


def _as_float(value: Any, kind: Any) -> Any:
    """An int as a float where the option is one, so that 1 and 1.0 share a compiled program."""
    return float(value) if type(value) is int and float in (get_args(kind) or (kind,)) else value


def sample_keys(seed: int, indices: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key a sample, a function of (seed, sample index) alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)


def initial_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """xT ~ N(0, I) of each sample's own key; shape is (h, w, c)."""
    return _normal(keys, 0, shape)


def step_noise(
    keys: Key[Array, " b"], row: GridRow, xt: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """The noise of one step, of each sample's own key and the row's index."""
    return _normal(keys, row.i + 1, xt.shape[1:])


def _normal(keys, index, shape):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def sample(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    xT: Float[Array, "b h w c"],
    *,
    trajectory: bool = False,
) -> Float[Array, "..."]:
    """x0 (b, h, w, c) drawn from xT by one `lax.scan`; with `trajectory` all states (steps + 1, b, h, w, c)."""
    (x0, _), states = _walk_jit(
        keys, _pytree(denoise), sampler, grid, _start(sampler, xT), trajectory
    )
    return jnp.concatenate([xT[None], states]) if trajectory else x0


def sample_in_chunks(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    xT: Float[Array, "b h w c"],
    chunks: int = 1,
) -> Iterator[Float[Array, "b h w c"]]:
    """Yields xt after each of `chunks` equal parts of the walk, the last being x0: for progress bars and previews.

    All parts run one compiled program, and nothing is called back from inside it (a callback would keep the
    program out of the persistent compilation cache). Raises ValueError if the steps do not divide.
    """
    steps = len(grid.i)
    if chunks < 1 or steps % chunks:
        raise ValueError(f"{steps} steps do not divide into {chunks} equal chunks")
    carry = _start(sampler, xT)
    for rows in grid.split(chunks):
        carry, _ = _walk_jit(keys, _pytree(denoise), sampler, rows, carry)
        yield carry[0]


def _walk(keys, denoise, sampler, grid, carry, trajectory=False):
    def body(carry, row):
        carry = sampler.step(
            keys, denoise, carry[0], row._replace(schedule=grid.schedule), carry[1]
        )
        return carry, carry[0] if trajectory else None

    return jax.lax.scan(body, carry, grid._replace(schedule=None))


@jax.jit
def _start(sampler, xT):
    """The first state; from jit, so that it lies on the devices as those after it do, and one program serves all."""
    return xT, sampler.init(xT)


_walk_jit = jax.jit(_walk, static_argnames="trajectory")


def _pytree(function: Callable) -> Callable:
    """What jit takes as an argument: a Partial as it is, so that changing its leaves does not recompile."""
    return function if isinstance(function, Partial) else Partial(function)
