"""RePaint: a grid that passes stretches of steps again, adding noise between the passes.

So the redrawn pixels of an inpainted image can fit the known ones better (Lugmayr et al. 2022).
"""

import numpy as np

from ddpm_jax.diffusion.grid import GridRow, grid_from_pairs
from ddpm_jax.errors import check

JUMP_LENGTH = 10
"""Rows of a stretch in the paper of RePaint."""


def repaint_grid(grid: GridRow, repeats: int, jump_length: int | None) -> GridRow:
    """The grid with each stretch of `jump_length` rows passed `repeats` times.

    Between two passes, one row leads back to the noisier end (section 4.2, Lugmayr et al. 2022).
    Stretches are counted back from the last noisy level: the row to clean data, and the rows before
    the first full stretch, are passed once. A `jump_length` of None is 10, or one less than the
    steps if these are fewer. Raise ValueError unless repeats is at least 1 and a stretch is shorter
    than the grid.
    """
    steps = len(grid.i)
    check(repeats >= 1, f"repeats must be at least 1, not {repeats}.")
    if repeats == 1:
        return grid
    check(
        steps > 1,
        "One step has no stretch to repeat: take more steps, raise strength, or set repeats "
        "(--resample) to 1.",
    )
    if jump_length is None:
        jump_length = min(JUMP_LENGTH, steps - 1)
    check(
        1 <= jump_length < steps,
        f"jump_length must be at least 1 and less than the {steps} steps, not {jump_length}.",
    )
    t = np.asarray(grid.t)
    t_next = np.asarray(grid.t_next)
    order = np.array(repaint_order(steps, repeats, jump_length))
    states = order[:-1]
    next_states = order[1:]
    # No row leads up to clean data, the state `steps`: its index only has to be valid.
    t_up = t[np.minimum(next_states, steps - 1)]
    assert grid.schedule is not None
    return grid_from_pairs(
        grid.schedule, t[states], np.where(next_states > states, t_next[states], t_up)
    )


def repaint_order(steps: int, repeats: int, jump_length: int) -> list[int]:
    """The states that `repaint_grid` passes: i is the state before row i, `steps` is clean data."""
    first = (steps - 1) % jump_length
    states = list(range(first))
    for start in range(first, steps - 1, jump_length):
        stretch = list(range(start, start + jump_length + 1))
        # The next stretch starts with the state that ends this one.
        states += (stretch * repeats)[:-1]
    return [*states, steps - 1, steps]
