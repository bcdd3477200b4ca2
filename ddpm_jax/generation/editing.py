"""Editing pictures with a trained net: the grid, the start or the sampler of a walk changes, the net never does.

    strength     x starts as q(x_t | x0) of a picture, part of the way down the grid       SDEdit, Meng et al. 2022
    inpainting   a sampler whose every step puts q(x_next | x0) where a picture is known   Song et al. 2021 (SDE)
    resampling   a grid that goes up again and again, so that new and known parts agree    RePaint, Lugmayr et al. 2022
    mixing       two pictures of the same noise, or two noises, decoded from between       section 4.4, Ho et al. 2020
    inversion    the deterministic walk upwards, to the state that leads to a picture      section 5.4, Song et al. 2021

Each is a function for itself, for any denoiser and sampler; `Edit` is what a command asks for of all of them.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from ddpm_jax.diffusion.grid import GridRow, grid_from_pairs
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.errors import check
from ddpm_jax.samplers import Sampler, initial_noise, sample, sample_keys, step_noise


def truncate(grid: GridRow, strength: float) -> GridRow:
    """The last share of a grid's rows, as they are there, at least one; raises ValueError outside (0, 1]."""
    check(0 < strength <= 1, f"strength must be above 0 and at most 1, not {strength}")
    return _last_rows(grid, max(1, round(strength * len(grid.i))))


def _last_rows(grid: GridRow, count: int) -> GridRow:
    part = jax.tree.map(lambda table: table[-count:], grid._replace(schedule=None))
    return part._replace(schedule=grid.schedule)


def add_noise(
    keys: Key[Array, " b"], grid: GridRow, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Pictures at the noise level where `grid` starts, with the noise a sample of these keys starts from.

    xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Eq. 4, Ho et al. 2020). Of a whole grid that is the level of
    its first row, which still holds a trace of the picture wherever alpha_bar is above 0.
    """
    first = grid.row(0)
    eps = initial_noise(keys, images.shape[1:])
    return first.sqrt_alpha_bar * images + first.sqrt_one_minus_alpha_bar * eps


def inpaint(
    sampler: Sampler, images: Float[Array, "b h w c"], masks: Bool[Array, "b h w 1"]
) -> Sampler:
    """`sampler` with everything outside `masks` held to `images`; True is made anew.

    x_next = mask x_next + (1 - mask) (sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next) eps), with eps of the
    sample's key but of none of the sampler's own draws (Eq. 8, Lugmayr et al. 2022). At clean data that is x0 itself.
    On a row that goes up, x_next ~ q(x_next | x_t) (their Algorithm 1, line 10), the net is not asked, and a
    method that remembers earlier steps starts afresh. Raises ValueError for masks of another size.
    """
    sizes = images.shape[1:3], masks.shape[1:3]
    check(
        sizes[0] == sizes[1],
        f"masks of {sizes[1]} pixels are for pictures of that size, not {sizes[0]}",
    )
    return dataclasses.replace(sampler, step=Partial(_inpaint_step, sampler, images, masks))


def _inpaint_step(sampler, images, masks, keys, denoise, xt, row, state):
    def down():
        x_next, state_next = sampler.step(keys, denoise, xt, row, state)
        eps = step_noise(_stream(keys, "known"), row, xt)
        known = row.sqrt_alpha_bar_next * images + row.sqrt_one_minus_alpha_bar_next * eps
        return jnp.where(masks, x_next, known), state_next

    def up():
        signal = row.sqrt_alpha_bar_next / row.sqrt_alpha_bar
        x_next = signal * xt + jnp.sqrt(1 - signal**2) * step_noise(keys, row, xt)
        return x_next, sampler.init(x_next)

    return jax.lax.cond(row.sqrt_alpha_bar_next < row.sqrt_alpha_bar, up, down)


def repaint_grid(grid: GridRow, repeats: int, jump: int) -> GridRow:
    """The grid with each stretch of `jump` rows walked `repeats` times, and one row up between two times.

    Section 4.2, Lugmayr et al. 2022. Stretches are counted from the last noisy level: the row to clean data and the
    rows before the first whole stretch are walked once. Raises ValueError for a stretch longer than the grid.
    """
    steps = len(grid.i)
    check(repeats >= 1, f"repeats must be at least 1, not {repeats}")
    if repeats == 1:
        return grid
    check(
        1 <= jump < steps,
        f"jump must be at least 1 and less than the {steps} steps of the walk, not {jump}",
    )
    t, t_next = np.asarray(grid.t), np.asarray(grid.t_next)
    here, after = (
        np.array(repaint_order(steps, repeats, jump)[:-1]),
        np.array(repaint_order(steps, repeats, jump)[1:]),
    )
    assert grid.schedule is not None
    return grid_from_pairs(
        grid.schedule,
        t[here],
        np.where(after > here, t_next[here], t[np.minimum(after, steps - 1)]),
    )


def repaint_order(steps: int, repeats: int, jump: int) -> list[int]:
    """The states that a resampled walk passes: i stands before row i of the grid, `steps` for clean data."""
    first = (steps - 1) % jump
    states = list(range(first))
    for start in range(first, steps - 1, jump):
        states += (list(range(start, start + jump + 1)) * repeats)[:-1]
    return [*states, steps - 1, steps]


def slerp(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], share: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """(sin((1 - s) u) a + sin(s u) b) / sin(u), u the angle between a and b in each picture, s = share in [0, 1].

    Shoemake 1985, as in section 5.3 of Song et al. 2021 (DDIM). Between noises it has their length, which a straight
    line has not.
    """
    lengths = jnp.linalg.norm(a.reshape(len(a), -1), axis=1) * jnp.linalg.norm(
        b.reshape(len(b), -1), axis=1
    )
    angle = jnp.arccos(jnp.clip(jnp.sum(a * b, (1, 2, 3)) / jnp.maximum(lengths, 1e-12), -1, 1))
    straight = jnp.sin(angle) < 1e-4
    sine = jnp.where(straight, 1.0, jnp.sin(angle))
    of_a = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    of_b = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    return per_example(of_a, a) * a + per_example(of_b, b) * b


def lerp(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], share: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """(1 - share) a + share b."""
    return per_example(1 - share, a) * a + per_example(share, b) * b


def drop_pure_noise(grid: GridRow) -> GridRow:
    """The rows of a grid that do not start at pure noise, which no picture leads to; ValueError where there is none."""
    count = int(np.sum(np.asarray(grid.sqrt_alpha_bar) > 0))
    check(
        count > 0,
        "every step of this walk starts at pure noise, to which no picture leads: take more steps",
    )
    return _last_rows(grid, count)


def reversed_grid(grid: GridRow) -> GridRow:
    """The levels of a grid from its last noisy one to its first."""
    t = np.asarray(grid.t)[::-1]
    assert grid.schedule is not None
    return grid_from_pairs(grid.schedule, t[:-1], t[1:])


def invert(
    keys: Key[Array, " b"],
    denoise: Denoiser,
    sampler: Sampler,
    grid: GridRow,
    images: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """The state from which `sampler` walks down `grid` to about `images`, by walking up with it.

    Section 5.4, Song et al. 2021 (DDIM). The picture counts as the state at the last noisy level. The way back is as
    exact as the steps are small, whatever `denoise` is, clipped or guided, if it is the same both ways.
    Raises ValueError for a sampler that draws noise, and for a grid from pure noise (`with_signal` makes it one).
    """
    check(
        len(drop_pure_noise(grid).i) == len(grid.i),
        "no picture leads to pure noise: walk with_signal(grid)",
    )
    check_inverts(sampler, grid, images.shape[1:])
    return sample(keys, denoise, sampler, reversed_grid(grid), images)


def check_inverts(sampler: Sampler, grid: GridRow, shape: tuple[int, ...]) -> None:
    """Raises ValueError for a sampler whose walk depends on its key; tried on one picture of this shape."""
    denoise, xT = Partial(_nothing), jnp.ones((1, *shape))
    ends = [
        sample(sample_keys(0, jnp.array([i])), denoise, sampler, grid, xT, trajectory=True)
        for i in (0, 1)
    ]
    check(
        bool(jnp.all(ends[0] == ends[1])),
        "inversion needs a sampler that draws no noise, such as ddim",
    )


def _nothing(xt, t):
    return Prediction(jnp.zeros_like(xt), xt)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """What samples start from and keep; sample i takes row i, in turn, of each array. A pytree.

    With `shares` sample i starts shares[i] of the way from its image to its other image, or, where it has none,
    between two noises: give all samples the same key then, so that they are on one way. Raises ValueError for what
    contradicts itself.
    """

    images: Float[Array, "n h w c"] | None = None
    """In [-1, 1]."""
    end_images: Float[Array, "n h w c"] | None = None
    masks: Bool[Array, "m h w 1"] | None = None
    """True where a picture is made anew."""
    fractions: Float[Array, " k"] | None = None
    """In [0, 1]."""
    strength: float = dataclasses.field(default=1.0, metadata={"static": True})
    """Share of the grid that is walked, in (0, 1]; with a mask and 1 a walk starts from noise alone."""
    repeats: int = dataclasses.field(default=1, metadata={"static": True})
    """How often each stretch is walked; for masks."""
    jump_length: int = dataclasses.field(default=10, metadata={"static": True})
    """Rows of a stretch."""
    invert: bool = dataclasses.field(default=False, metadata={"static": True})
    """Pictures are encoded by walking up, not noised."""

    def __post_init__(self):
        some = self.images is not None
        between = (self.end_images is not None) == (some and self.fractions is not None)
        check(between, "a way between pictures needs images, others and shares")
        check(
            some or (self.masks is None and not self.invert),
            "masks and inversion are for images: give them too",
        )
        check(self.masks is not None or self.repeats == 1, "repeats are for masks: give them too")
        alone = self.fractions is None and not self.invert
        check(self.masks is None or alone, "masks go neither with shares nor with inversion")

    def take(self, indices: Int[Array, " b"]) -> "Edit":
        """The same for these samples alone, a row each."""
        return jax.tree.map(lambda table: jnp.asarray(table)[indices % len(table)], self)

    def grid(self, grid: GridRow, sampler: Sampler) -> GridRow:
        """What is walked of a grid, and in which order; raises ValueError where the sampler cannot do it."""
        grid = truncate(grid, self.strength)
        if self.invert and self.images is not None:
            grid = drop_pure_noise(grid)
            check(
                len(grid.i) > 1,
                "inversion walks up from one noise level to another: take more steps, or strength",
            )
            check_inverts(sampler, grid, self.images.shape[1:])
        return repaint_grid(grid, self.repeats, self.jump_length)

    def sampler(self, sampler: Sampler) -> Sampler:
        """The sampler that keeps what is outside the masks."""
        if self.masks is None or self.images is None:
            return sampler
        return inpaint(sampler, self.images, self.masks)

    def start(
        self,
        keys: Key[Array, " b"],
        denoise: Denoiser,
        sampler: Sampler,
        grid: GridRow,
        xT: Float[Array, "b h w c"],
    ) -> Float[Array, "b h w c"]:
        """The state that the edited grid is walked from, where plain samples start from xT."""

        def encode(images):
            return (
                invert(keys, denoise, sampler, grid, images)
                if self.invert
                else add_noise(keys, grid, images)
            )

        plain = self.images is None or (self.masks is not None and self.strength == 1)
        start = xT if plain else encode(self.images)
        if self.fractions is None:
            return start
        other = (
            initial_noise(_stream(keys, "other"), xT.shape[1:])
            if self.end_images is None
            else encode(self.end_images)
        )
        return (lerp if self.images is not None and not self.invert else slerp)(
            start, other, self.fractions
        )


def _stream(keys, name: str):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(zlib.crc32(name.encode())))
