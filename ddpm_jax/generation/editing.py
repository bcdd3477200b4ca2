"""Edit images with a trained network.

An edit changes the grid, the initial state or the sampler, never the network.

strength       start from q(x_t | x0) of an image               SDEdit, Meng et al. 2022
inpainting     draw known pixels from q(x_next | x0) each step  SDE, Song et al. 2021
resampling     add noise and denoise again, repeatedly          RePaint, Lugmayr et al. 2022
interpolation  decode mixtures of two noisy images or noises    DDPM, Ho et al. 2020, section 4.4
inversion      run the grid in reverse, from image to noise     DDIM, Song et al. 2021, section 5.4

Each has its own function, for any denoiser and sampler; inversion needs a deterministic sampler.
`Edit` combines them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key

from ddpm_jax import draws
from ddpm_jax.diffusion.grid import GridRow, grid_from_pairs
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.schedule import per_example
from ddpm_jax.errors import check, check_floats, check_shape
from ddpm_jax.generation.repaint import repaint_grid
from ddpm_jax.samplers import Sampler, initial_noise, sample, sample_keys, step_noise


def truncate(grid: GridRow, strength: float) -> GridRow:
    """The last fraction `strength` of a grid's rows, at least one row; a half is rounded to even.

    Raise ValueError for a strength outside (0, 1].
    """
    check(0 < strength <= 1, f"strength must be above 0 and at most 1, not {strength}.")
    return last_rows(grid, max(1, round(strength * len(grid.i))))


def last_rows(grid: GridRow, n: int) -> GridRow:
    """The last n rows of a grid."""
    rows = jax.tree.map(lambda table: table[-n:], grid._replace(schedule=None))
    return rows._replace(schedule=grid.schedule)


def add_noise(
    keys: Key[Array, " b"], grid: GridRow, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Add the initial noise of `keys` to images, at the noise level where `grid` starts.

    xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (Eq. 4, Ho et al. 2020). The first level of a
    whole grid keeps a trace of the image unless its alpha_bar is 0. Raise ValueError unless there
    is one key per image, and for images of integers.
    """
    check_floats(Images=images)
    check_shape(images.shape[:1], keys=keys)
    first = grid.row(0)
    eps = initial_noise(keys, images.shape[1:])
    return first.sqrt_alpha_bar * images + first.sqrt_one_minus_alpha_bar * eps


def inpaint(
    sampler: Sampler, images: Float[Array, "b h w c"], masks: Bool[Array, "b h w 1"]
) -> Sampler:
    """The sampler that redraws `images` where `masks` is True and keeps all other pixels.

    x_next = mask x_next + (1 - mask) (sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next) eps)
    (Eq. 8, Lugmayr et al. 2022). eps comes from the sample's key, but is independent of the
    sampler's own draws. After the last step the known pixels equal x0.
    On a row to a noisier level, x_next ~ q(x_next | x_t) (their Algorithm 1, line 10): the network
    is not called, and a multistep method forgets its earlier steps.
    Raise ValueError if masks and images differ in size or number, or images and samples do, for
    images of integers, and for masks that are not boolean.
    """
    check_floats(Images=images)
    check(
        masks.dtype == bool,
        f"masks must be True where an image is redrawn, not {masks.dtype}: compare them, as in "
        "masks > 0.5.",
    )
    image_size = images.shape[1:3]
    mask_size = masks.shape[1:3]
    check(
        image_size == mask_size,
        f"Masks of size {mask_size} do not fit images of size {image_size}: resize the masks.",
    )
    check_shape((*images.shape[:3], 1), masks=masks)
    return dataclasses.replace(sampler, step=Partial(_inpaint_step, sampler, images, masks))


def _inpaint_step(sampler, images, masks, keys, denoise, xt, row, state):
    check_shape(xt.shape, images=images)

    def down():
        x_next, state_next = sampler.step(keys, denoise, xt, row, state)
        eps = step_noise(draws.fold_in_name(keys, "known"), row, xt)
        return jnp.where(masks, x_next, at_end_of(row, images, eps)), state_next

    def up():
        signal = row.sqrt_alpha_bar_next / row.sqrt_alpha_bar
        x_next = signal * xt + jnp.sqrt(1 - signal**2) * step_noise(keys, row, xt)
        return x_next, sampler.init(x_next)

    return jax.lax.cond(row.sqrt_alpha_bar_next < row.sqrt_alpha_bar, up, down)


def at_end_of(
    row: GridRow, images: Float[Array, "b h w c"], eps: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """The images at the noise level where a row ends. After the last row they have no noise."""
    is_last = row.i + 1 == row.steps
    signal = jnp.where(is_last, 1.0, row.sqrt_alpha_bar_next)
    std = jnp.where(is_last, 0.0, row.sqrt_one_minus_alpha_bar_next)
    return signal * images + std * eps


def slerp(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], fraction: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Spherical interpolation: (sin((1 - s) u) a + sin(s u) b) / sin(u).

    u is the angle between a and b in each image, s is `fraction` in [0, 1] (Shoemake 1985; section
    5.3, Song et al. 2021, DDIM). It keeps the length of noise, which linear interpolation shrinks.
    Raise ValueError unless a and b have one shape, and fraction one number per image.
    """
    _check_ends(a, b, fraction)
    squares = jnp.sum(a**2, (1, 2, 3)) * jnp.sum(b**2, (1, 2, 3))  # (b,)
    cosine = jnp.sum(a * b, (1, 2, 3)) / jnp.sqrt(jnp.maximum(squares, 1e-24))  # (b,)
    # Parallel ends have no arc: interpolate linearly. The derivative of arccos is infinite there.
    parallel = 1 - cosine**2 < 1e-8
    angle = jnp.arccos(jnp.where(parallel, 0.0, cosine))
    sine = jnp.sin(angle)
    a_weight = jnp.where(parallel, 1 - fraction, jnp.sin((1 - fraction) * angle) / sine)
    b_weight = jnp.where(parallel, fraction, jnp.sin(fraction * angle) / sine)
    return per_example(a_weight, a) * a + per_example(b_weight, b) * b


def lerp(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], fraction: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Linear interpolation: (1 - fraction) a + fraction b. Raise ValueError as `slerp` does."""
    _check_ends(a, b, fraction)
    return per_example(1 - fraction, a) * a + per_example(fraction, b) * b


def _check_ends(a, b, fraction):
    check_shape(a.shape, b=b)
    check_shape(a.shape[:1], fraction=fraction)


def drop_pure_noise(grid: GridRow) -> GridRow:
    """The grid without rows that start at pure noise, which no image can be inverted to.

    Raise ValueError if no row is left.
    """
    n = int(np.sum(np.asarray(grid.sqrt_alpha_bar) > 0))
    check(
        n > 0,
        "Every step of this grid starts at pure noise, which no image can be inverted to: "
        "take more steps.",
    )
    return last_rows(grid, n)


def reversed_grid(grid: GridRow) -> GridRow:
    """The grid in reverse, from the last noisy level of `grid` up to its first."""
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
    """The noise from which `sampler` on `grid` approximately reproduces `images`.

    It is found by running the grid in reverse (section 5.4, Song et al. 2021, DDIM). The image
    serves as the state at the last noisy level. The error shrinks with the step size. `denoise` may
    clip or be guided, if it is the same in both directions. Raise ValueError for a sampler that
    draws noise, for images of integers, for a grid of one level, and for a grid from pure noise:
    apply `drop_pure_noise` first.
    """
    check_floats(Images=images)
    check(
        len(drop_pure_noise(grid).i) == len(grid.i),
        "No image can be inverted to pure noise: use drop_pure_noise(grid).",
    )
    check(len(grid.i) > 1, "Inversion needs at least two noise levels: give a grid of more rows.")
    check_inverts(sampler, grid, images.shape[1:])
    return sample(keys, denoise, sampler, reversed_grid(grid), images)


def check_inverts(sampler: Sampler, grid: GridRow, shape: tuple[int, ...]) -> None:
    """Raise ValueError for a sampler that draws noise.

    Run it on one image of this shape with two keys and compare the trajectories.
    """
    denoise = Partial(_zero_x0)
    xT = jnp.ones((1, *shape), jnp.float32)

    def states(index):
        keys = sample_keys(0, jnp.array([index], jnp.int32))
        return sample(keys, denoise, sampler, grid, xT, trajectory=True)

    check(
        bool(jnp.all(states(0) == states(1))),
        "Inversion needs a deterministic sampler: use one that draws no noise, such as ddim.",
    )


def _zero_x0(xt, t):
    # With an output for the variance, a sampler of a learned variance draws its noise.
    return Prediction(jnp.zeros_like(xt), xt, jnp.zeros_like(xt))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """The start and the known pixels of samples. Sample i takes row i of each array, cyclically.

    With `fractions`, sample i starts at fractions[i] between its image and its end image; without
    images, between two noises. All samples must then have the same key, so that they share both
    ends. An edit is a pytree. Raise ValueError for contradictory settings.
    """

    images: Float[Array, "n h w c"] | None = None
    """In [-1, 1]."""
    end_images: Float[Array, "n h w c"] | None = None
    """Images to interpolate to, in [-1, 1]."""
    masks: Bool[Array, "m h w 1"] | None = None
    """True where an image is redrawn."""
    fractions: Float[Array, " k"] | None = None
    """Interpolation weights of the end image, in [0, 1]."""
    strength: float = dataclasses.field(default=1.0, metadata={"static": True})
    """Fraction of the grid's rows to run, in (0, 1]. With masks, 1 starts from pure noise."""
    repeats: int = dataclasses.field(default=1, metadata={"static": True})
    """Passes over each stretch of the grid, for masks (`repaint_grid`)."""
    jump_length: int | None = dataclasses.field(default=None, metadata={"static": True})
    """Rows of a stretch; None as in `repaint_grid`."""
    invert: bool = dataclasses.field(default=False, metadata={"static": True})
    """Start from the inverted images instead of adding noise to them."""

    def __post_init__(self):
        has_images = self.images is not None
        has_ends = has_images and self.fractions is not None
        check(
            (self.end_images is not None) == has_ends,
            "An interpolation of images needs images, end_images and fractions: give all three.",
        )
        check(
            has_images or (self.masks is None and not self.invert and self.strength == 1),
            "Masks, inversion and strength need images: give images too.",
        )
        check(self.masks is not None or self.repeats == 1, "repeats needs masks: give masks too.")
        check(
            self.masks is None or (self.fractions is None and not self.invert),
            "Masks do not go with fractions or inversion: leave one of them out.",
        )

    def take(self, indices: Int[Array, " b"]) -> "Edit":
        """The edit of these samples alone, with one row per sample."""
        return jax.tree.map(lambda table: jnp.asarray(table)[indices % len(table)], self)

    def grid(self, grid: GridRow, sampler: Sampler) -> GridRow:
        """The grid as this edit changes it. Raise ValueError if the edit does not fit it."""
        grid = truncate(grid, self.strength)
        if self.invert and self.images is not None:
            grid = drop_pure_noise(grid)
            check(
                len(grid.i) > 1,
                "Inversion needs at least two noise levels: take more steps, or raise strength.",
            )
            check_inverts(sampler, grid, self.images.shape[1:])
        return repaint_grid(grid, self.repeats, self.jump_length)

    def sampler(self, sampler: Sampler) -> Sampler:
        """The sampler that keeps the pixels outside the masks, if there are masks."""
        if self.masks is None or self.images is None:
            return sampler
        return inpaint(sampler, self.images, self.masks)

    @property
    def starts_from_noise(self) -> bool:
        """Whether nothing of an image is in the first state."""
        return self.images is None or (self.masks is not None and self.strength == 1)

    def start(
        self,
        keys: Key[Array, " b"],
        denoise: Denoiser,
        sampler: Sampler,
        grid: GridRow,
        xT: Float[Array, "b h w c"],
    ) -> Float[Array, "b h w c"]:
        """The state at the start of the edited grid. Without images or fractions, it is xT."""

        def encode(images):
            check_shape(xT.shape, images=images)
            if self.invert:
                return invert(keys, denoise, sampler, grid, images)
            return add_noise(keys, grid, images)

        start = xT if self.starts_from_noise else encode(self.images)
        if self.fractions is None:
            return start
        if self.end_images is None:
            end = initial_noise(draws.fold_in_name(keys, "other"), xT.shape[1:])
        else:
            end = encode(self.end_images)
        # Two noisy images contain the same noise, which lerp keeps. Two noises, drawn or inverted
        # from images, differ, and lerp would shrink them.
        same_noise = self.images is not None and not self.invert
        interpolate = lerp if same_noise else slerp
        return interpolate(start, end, self.fractions)
