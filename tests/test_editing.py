"""Editing against exact solutions: Gaussians in closed form, RePaint's published timetable, maps of one point."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax import samplers
from ddpm_jax.editing import (
    Edit,
    check_inverts,
    inpaint,
    invert,
    last_part,
    lerp,
    noised,
    resampled,
    slerp,
    timetable,
    upwards,
)
from ddpm_jax.grids import make_grid, spaced
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.samplers import initial_noise, sample, sample_keys, step_noise
from ddpm_jax.schedule import from_betas, linear, per_example

SCHEDULE = from_betas(linear())
ALPHA_BAR = np.cumprod(1 - linear())
MU, STD = 0.3, 0.5
SHAPE = (4, 4, 1)
KEYS = sample_keys(0, jnp.arange(6))
NOISE = initial_noise(KEYS, SHAPE)
IMAGES = jnp.clip(0.5 * jax.random.normal(jax.random.key(5), (6, *SHAPE)), -1, 1)
LEFT = jnp.broadcast_to(jnp.arange(4)[None, None, :, None] < 2, (6, *SHAPE))


def grid_of(steps):
    return make_grid(SCHEDULE, spaced(1000, steps))


def gaussian_x0(xt, t):
    """E[x0 | xt] where every pixel of the data is N(MU, STD^2)."""
    signal, noise = per_example(SCHEDULE.at(t), xt)
    return MU + STD**2 * signal * (xt - signal * MU) / (STD**2 * signal**2 + noise**2)


def curved(weight, xt, t):
    """A network that mixes the pixels of a picture and is not linear."""
    return weight * jnp.tanh(xt + jnp.roll(xt, 1, 2)) + per_example(t, xt).astype(jnp.float32) / 2000


GAUSSIAN = make_denoiser(SCHEDULE, Partial(gaussian_x0), "x0", None)
CURVED = make_denoiser(SCHEDULE, Partial(curved, jnp.float32(0.6)), "x0")


def assert_moments(found, mean, std):
    """Sample mean and deviation within 5 standard errors, and rounding, of the exact ones."""
    found = np.asarray(found, float).ravel()
    assert abs(found.mean() - mean) <= 5 * std / np.sqrt(found.size) + 1e-5
    assert abs(found.std() - std) <= 5 * std / np.sqrt(2 * found.size) + 1e-5


# Starting from a picture


@pytest.mark.parametrize(("strength", "count"), [(1.0, 10), (0.6, 6), (0.55, 6), (0.1, 1), (0.001, 1)])
def test_strength_is_the_share_of_the_rows_that_is_walked_as_it_was(strength, count):
    whole, part = grid_of(10), last_part(grid_of(10), strength)
    assert part.i.tolist() == list(range(10))[-count:]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-count:], b), whole[:-1], part[:-1])
    assert part.schedule is whole.schedule


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_strengths_out_of_range_are_refused(strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        last_part(grid_of(10), strength)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_picture_starts_at_the_level_of_the_first_row_with_the_samples_own_noise(strength):
    part = last_part(grid_of(10), strength)
    signal = np.sqrt(ALPHA_BAR[int(part.t[0])])
    wanted = signal * np.asarray(IMAGES, float) + np.sqrt(1 - signal**2) * np.asarray(NOISE, float)
    np.testing.assert_allclose(noised(KEYS, part, IMAGES), wanted, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_a_picture_noised_and_denoised_has_the_moments_of_bayes(strength):
    """x0' given the picture p: N(MU + gain signal (p - MU), gain^2 noise^2 + Var[x0 | xt])."""
    keys = sample_keys(1, jnp.arange(64))
    grid = last_part(grid_of(1000), strength)
    p = jnp.full((64, 12, 12, 1), -0.8)
    x0 = sample(keys, GAUSSIAN, samplers.make("ddpm"), grid, noised(keys, grid, p))
    signal2 = ALPHA_BAR[int(grid.t[0])]
    gain = STD**2 * np.sqrt(signal2) / (STD**2 * signal2 + 1 - signal2)
    mean = MU + gain * np.sqrt(signal2) * (-0.8 - MU)
    var = gain**2 * (1 - signal2) + STD**2 * (1 - signal2) / (STD**2 * signal2 + 1 - signal2)
    found = np.asarray(x0, float)
    assert abs(found.mean() - mean) < 5 * np.sqrt(var / found.size) + 2e-3
    assert abs(found.std() / np.sqrt(var) - 1) < 5 / np.sqrt(2 * found.size) + 2e-3
    assert abs(mean - MU) > 0.02


# Inpainting


def jumps_of_lugmayr(steps, repeats, jump):
    """`get_schedule_jump` of the RePaint authors (t from T-1 to 0, then -1), in our count of states."""
    jumps = dict.fromkeys(range(0, steps - jump, jump), repeats - 1)
    t, states = steps, []
    while t >= 1:
        t -= 1
        states.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                states.append(t)
    return [steps - 1 - t for t in [*states, -1]]


@pytest.mark.parametrize("shape", [(10, 3, 3), (11, 2, 5), (13, 4, 1), (250, 10, 10), (7, 2, 6), (5, 1, 3), (2, 3, 1)])
def test_the_timetable_is_the_published_one_with_each_way_up_in_one_row(shape):
    published = jumps_of_lugmayr(*shape)
    kept = [s for i, s in enumerate(published) if not 0 < i < len(published) - 1 or not _on_the_way_up(published, i)]
    assert timetable(*shape) == kept


def _on_the_way_up(states, i):
    return states[i - 1] > states[i] > states[i + 1]


@pytest.mark.parametrize(("steps", "repeats", "jump"), [(10, 3, 3), (12, 2, 5), (20, 4, 1)])
def test_every_row_of_a_stretch_is_walked_as_often_as_asked(steps, repeats, jump):
    states = timetable(steps, repeats, jump)
    walked = [a for a, b in itertools.pairwise(states) if b > a]
    once = (steps - 1) % jump
    assert [walked.count(i) for i in range(steps)] == [1] * once + [repeats] * (steps - 1 - once) + [1]


def test_a_resampled_grid_goes_on_where_it_is():
    grid, plain = resampled(grid_of(10), 3, 4), grid_of(10)
    assert grid.t_next[:-1].tolist() == grid.t[1:].tolist()
    np.testing.assert_allclose(grid.sqrt_alpha_bar_next[:-1], grid.sqrt_alpha_bar[1:], rtol=1e-6)
    up = grid.t_next > grid.t
    assert int(up.sum()) == 4
    assert set(grid.t[~up].tolist()) == set(plain.t.tolist())
    assert grid.i.tolist() == list(range(len(grid.i)))
    assert grid.t_next[-1] == -1
    assert resampled(plain, 1, 10) is plain


@pytest.mark.parametrize(
    ("repeats", "jump", "message"),
    [
        (0, 3, "repeats must be at least 1, not 0"),
        (2, 0, "jump must be at least 1 and less than the 10 steps of the walk, not 0"),
        (2, 10, "less than the 10 steps of the walk, not 10"),
    ],
)
def test_resampling_that_cannot_be_is_refused(repeats, jump, message):
    with pytest.raises(ValueError, match=message):
        resampled(grid_of(10), repeats, jump)


@pytest.mark.parametrize("name", samplers.names())
def test_inpainting_with_any_sampler(name):
    """Everything masked and one pass is plain sampling; what is not masked stays as it is, exactly."""
    sampler, again = samplers.make(name), resampled(grid_of(4), 2, 2)
    grid = grid_of(len(again.i))
    plain = sample(KEYS, CURVED, sampler, grid, NOISE)
    walk = lambda masks, grid=grid: sample(KEYS, CURVED, inpaint(sampler, IMAGES, masks), grid, NOISE)  # noqa: E731
    np.testing.assert_allclose(walk(jnp.ones_like(LEFT)), plain, atol=1e-6)
    np.testing.assert_array_equal(walk(jnp.zeros_like(LEFT)), IMAGES)
    for half in (walk(LEFT), walk(LEFT, again)):
        np.testing.assert_array_equal(jnp.where(LEFT, 0, half), jnp.where(LEFT, 0, IMAGES))
        assert jnp.all(jnp.any(LEFT & (jnp.abs(half - plain) > 1e-3), (1, 2, 3)))
        assert jnp.max(jnp.abs(half)) <= 1.5


CORRELATION = 0.9
VALUES, VECTORS = np.linalg.eigh(np.array([[1, CORRELATION], [CORRELATION, 1]]))


def pair_x0(xt, t):
    """E[x0 | xt] where the two pixels of a picture are correlated standard normals."""
    signal, noise = (level[0] for level in SCHEDULE.at(t))
    values, vectors = jnp.asarray(VALUES, jnp.float32), jnp.asarray(VECTORS, jnp.float32)
    gain = (vectors * (signal * values / (signal**2 * values + noise**2))[None]) @ vectors.T
    return jnp.einsum("ij,bhjc->bhic", gain, xt)


def test_resampling_comes_nearer_to_the_exact_conditional_than_replacement():
    """Of correlated normals the one is known: the other is N(0.9, 0.436^2); 20,000 samples, mean and deviation:

    replacement alone 0.602, 0.522; resampled 5 times 0.833, 0.393; 10 times 0.867, 0.375 (errors 0.003).
    """
    keys, denoise, grid = (
        sample_keys(0, jnp.arange(1500)),
        make_denoiser(SCHEDULE, Partial(pair_x0), "x0", None),
        grid_of(50),
    )
    xT = initial_noise(keys, (1, 2, 1))
    images = jnp.broadcast_to(jnp.array([1.0, 0.0])[None, None, :, None], xT.shape)
    sampler = inpaint(samplers.make("ddpm"), images, images == 0)
    off = []
    for repeats in (1, 5, 10):
        x0 = np.asarray(sample(keys, denoise, sampler, resampled(grid, repeats, 1), xT), float)
        assert np.all(x0[:, 0, 0, 0] == 1)
        off.append(abs(x0[:, 0, 1, 0].mean() - CORRELATION))
    assert off[0] > 0.25
    assert off[1] < off[0] / 3
    assert off[2] < off[1]
    assert off[2] < 0.034 + 5 * 0.4 / np.sqrt(1500)


def test_a_row_that_goes_up_adds_the_noise_of_the_forward_process_and_asks_nothing():
    keys = sample_keys(2, jnp.arange(64))
    xt = jnp.full((64, 12, 12, 1), 0.7)
    masks = jnp.ones(xt.shape, bool)
    for name in ("ddpm", "unipc"):
        sampler = samplers.make(name)
        grid = resampled(grid_of(10), 2, 3)
        i = int(jnp.argmax(grid.t_next > grid.t))
        row = grid.row(i)
        asks_nothing = make_denoiser(SCHEDULE, lambda xt, t: xt * jnp.nan)
        used = jax.tree.map(lambda x: x + 1, sampler.init(xt))
        x_next, memory = inpaint(sampler, xt, masks).step(keys, asks_nothing, xt, row, used)
        ratio = ALPHA_BAR[int(row.t_next)] / ALPHA_BAR[int(row.t)]
        assert_moments(x_next, 0.7 * np.sqrt(ratio), np.sqrt(1 - ratio))
        jax.tree.map(np.testing.assert_array_equal, memory, sampler.init(x_next))


def test_the_noise_of_the_known_part_is_its_own_and_new_in_every_row():
    keys = sample_keys(3, jnp.arange(64))
    xt, grid = jnp.zeros((64, 12, 12, 1)), grid_of(10)
    sampler = inpaint(samplers.make("ddpm"), xt, jnp.zeros(xt.shape, bool))
    noises = [initial_noise(keys, xt.shape[1:])]
    for i in (3, 4):
        known, _ = sampler.step(keys, GAUSSIAN, xt, grid.row(i), ())
        noises += [known / grid.row(i).sqrt_one_minus_alpha_bar_next, step_noise(keys, grid.row(i), xt)]
    for noise in noises:
        assert_moments(noise, 0, 1)
    correlations = np.corrcoef(np.stack(noises).reshape(5, -1)) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(xt.size)


# Between two ends


def test_slerp_keeps_the_length_and_turns_evenly():
    a, b = NOISE[:3], NOISE[3:]
    unit = lambda x: x / jnp.linalg.norm(x.reshape(3, -1), axis=1)[:, None, None, None]  # noqa: E731
    a, b = unit(a), unit(b)
    dot = lambda x, y: np.asarray(jnp.sum(x * y, (1, 2, 3)), float)  # noqa: E731
    angle = np.arccos(dot(a, b))
    for share in (0.0, 0.25, 0.5, 1.0):
        between = slerp(a, b, jnp.full(3, share))
        np.testing.assert_allclose(dot(between, between), 1, atol=1e-5)
        np.testing.assert_allclose(dot(between, a), np.cos(share * angle), atol=1e-5)
        np.testing.assert_allclose(dot(between, b), np.cos((1 - share) * angle), atol=1e-5)


def test_slerp_between_ends_that_point_alike_is_straight():
    share = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(slerp(NOISE[:3], 2 * NOISE[:3], share), lerp(NOISE[:3], 2 * NOISE[:3], share), rtol=1e-5)
    np.testing.assert_array_equal(slerp(jnp.zeros((3, *SHAPE)), NOISE[:3], share)[0], 0)


def walk(edit, name="ddpm", steps=8, keys=KEYS):
    """The edited walk, as Diffusion.walk has it."""
    sampler, xT = samplers.make(name), initial_noise(keys, SHAPE)
    grid = edit.grid(grid_of(steps), sampler)
    return sample(keys, CURVED, edit.sampler(sampler), grid, edit.start(keys, CURVED, sampler, grid, xT))


def test_between_two_pictures_the_noise_is_one_and_the_ends_are_theirs():
    """Section 4.4, Ho et al. 2020: xt = (1 - s) xt_a + s xt_b."""
    one = jnp.broadcast_to(KEYS[0], 6)
    a, b, shares = IMAGES[:1], IMAGES[1:2], jnp.linspace(0, 1, 6)
    edit = Edit(images=a, others=b, shares=shares, strength=0.5).of(jnp.arange(6))
    grid = edit.grid(grid_of(8), samplers.make("ddim"))
    start = edit.start(one, CURVED, samplers.make("ddpm"), grid, NOISE)
    signal, noise = np.sqrt(ALPHA_BAR[int(grid.t[0])]), np.sqrt(1 - ALPHA_BAR[int(grid.t[0])])
    mixed = per_example(1 - shares, a) * a + per_example(shares, b) * b
    np.testing.assert_allclose(start, signal * mixed + noise * NOISE[:1], atol=1e-5)
    found = walk(edit, keys=one)
    for i, image in ((0, a), (5, b)):
        alone = walk(Edit(images=image, strength=0.5).of(jnp.arange(6)), keys=one)
        np.testing.assert_allclose(found[i], alone[i], atol=1e-5)


def test_between_two_noises_the_first_is_the_samples_own():
    one = jnp.broadcast_to(KEYS[0], 6)
    shares = jnp.linspace(0, 1, 6)
    edit = Edit(shares=shares).of(jnp.arange(6))
    noise = initial_noise(one, SHAPE)
    start = edit.start(one, CURVED, samplers.make("ddpm"), edit.grid(grid_of(8), samplers.make("ddim")), noise)
    np.testing.assert_array_equal(start[0], noise[0])
    np.testing.assert_allclose(start, slerp(noise, jnp.broadcast_to(start[5], noise.shape), shares), atol=1e-5)
    assert abs(np.corrcoef(start[0].ravel(), start[5].ravel())[0, 1]) < 0.8
    many = Edit(shares=jnp.array([0.0, 0.5, 1.0])).of(jnp.arange(3))
    big = initial_noise(one[:3], (40, 40, 1))
    assert_moments(many.start(one[:3], CURVED, samplers.make("ddpm"), grid_of(8), big)[1], 0, 1)


# Inversion


def test_inversion_of_one_point_is_exact_in_any_number_of_steps():
    """The denoiser knows x0 = p: xT = signal_T p + noise_T eps, with the eps that the picture has at the last level."""
    p = IMAGES[:1]
    denoise = make_denoiser(SCHEDULE, lambda xt, t: jnp.broadcast_to(p, xt.shape), "x0", None)
    for steps in (2, 10):
        grid, ddim = grid_of(steps), samplers.make("ddim")
        first, last = ALPHA_BAR[int(grid.t[0])], ALPHA_BAR[int(grid.t[-1])]
        eps = (np.asarray(IMAGES, float) - np.sqrt(last) * np.asarray(p)) / np.sqrt(1 - last)
        xT = invert(KEYS, denoise, ddim, grid, IMAGES)
        np.testing.assert_allclose(xT, np.sqrt(first) * np.asarray(p) + np.sqrt(1 - first) * eps, atol=1e-4)
        states = sample(KEYS, denoise, ddim, grid, xT, trajectory=True)
        np.testing.assert_allclose(states[-2], IMAGES, atol=1e-4)
        np.testing.assert_allclose(states[-1], jnp.broadcast_to(p, IMAGES.shape), atol=1e-4)


def test_the_round_trip_of_inversion_is_of_first_order():
    off = []
    for steps in (25, 50, 100):
        grid, ddim = grid_of(steps), samplers.make("ddim")
        back = sample(KEYS, GAUSSIAN, ddim, grid, invert(KEYS, GAUSSIAN, ddim, grid, IMAGES))
        off.append(float(jnp.sqrt(jnp.mean((back - IMAGES) ** 2))))
    orders = -np.diff(np.log2(off))
    assert np.all((orders > 0.8) & (orders < 1.3)), (off, orders)
    assert off[-1] < 0.04


def test_inversion_reaches_the_state_of_the_exact_flow():
    """Of a Gaussian the probability flow keeps (x - signal MU) / deviation, deviation^2 = STD^2 signal^2 + noise^2."""
    grid = grid_of(500)
    xT = invert(KEYS, GAUSSIAN, samplers.make("ddim"), grid, IMAGES)
    (first, last), deviation = (ALPHA_BAR[int(grid.t[i])] for i in (0, -1)), lambda a: np.sqrt(STD**2 * a + 1 - a)
    z = (np.asarray(IMAGES, float) - np.sqrt(last) * MU) / deviation(last)
    np.testing.assert_allclose(xT, np.sqrt(first) * MU + deviation(first) * z, atol=0.02)


def test_the_way_up_passes_the_levels_of_the_way_down():
    grid = grid_of(5)
    up = upwards(grid)
    assert up.t.tolist() == grid.t[:0:-1].tolist()
    assert up.t_next.tolist() == grid.t[-2::-1].tolist()


@pytest.mark.parametrize(
    ("name", "options", "noisy"),
    [
        ("ddpm", {}, True),
        ("ddim", {}, False),
        ("ddim", {"eta": 0.01}, True),
        ("edm", {"S_churn": 10.0}, True),
        ("edm", {}, False),
        ("heun", {}, False),
    ],
)
def test_inversion_refuses_a_sampler_that_draws_noise(name, options, noisy):
    sampler, grid = samplers.make(name, **options), grid_of(6)
    if not noisy:
        check_inverts(sampler, grid)
        return
    asks = (
        lambda: invert(KEYS, CURVED, sampler, grid, IMAGES),
        lambda: Edit(images=IMAGES, inverted=True).grid(grid, sampler),
    )
    for ask in asks:
        with pytest.raises(ValueError, match="needs a sampler that draws no noise, such as ddim"):
            ask()


def test_an_inverted_picture_is_where_its_edit_starts():
    ddim = samplers.make("ddim")
    edit = Edit(images=IMAGES, strength=0.5, inverted=True).of(jnp.arange(6))
    grid = edit.grid(grid_of(8), samplers.make("ddim"))
    np.testing.assert_array_equal(edit.start(KEYS, CURVED, ddim, grid, NOISE), invert(KEYS, CURVED, ddim, grid, IMAGES))
    between = Edit(images=IMAGES, others=IMAGES[::-1], shares=jnp.full(6, 0.5), strength=0.5, inverted=True)
    start = between.of(jnp.arange(6)).start(KEYS, CURVED, ddim, grid, NOISE)
    ends = [invert(KEYS, CURVED, ddim, grid, images) for images in (IMAGES, IMAGES[::-1])]
    np.testing.assert_allclose(start, slerp(*ends, jnp.full(6, 0.5)), atol=1e-5)


# Edits as a whole

EDITS = {
    "strength": Edit(images=IMAGES[:2], strength=0.5),
    "mask": Edit(images=IMAGES[:2], masks=LEFT[:1], repeats=2, jump=2),
    "mask and strength": Edit(images=IMAGES[:1], masks=LEFT[:1], strength=0.5),
    "pictures": Edit(images=IMAGES[:1], others=IMAGES[1:2], shares=jnp.linspace(0, 1, 6), strength=0.5),
    "noises": Edit(shares=jnp.linspace(0, 1, 6)),
    "inversion": Edit(images=IMAGES[:2], inverted=True),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_sample_is_of_its_own_rows_whatever_the_batch(name):
    edit, sampler = EDITS[name], "ddim" if name == "inversion" else "ddpm"
    whole = walk(edit.of(jnp.arange(6)), sampler)
    part = walk(edit.of(jnp.arange(3, 5)), sampler, keys=KEYS[3:5])
    np.testing.assert_allclose(part, whole[3:5], atol=0.5 / 255)
    assert jnp.max(jnp.abs(whole[3] - whole[4])) > 0.01


def test_a_masked_start_is_noise_alone_unless_strength_says_otherwise():
    def start(edit):
        ddpm = samplers.make("ddpm")
        return edit.start(KEYS, CURVED, ddpm, edit.grid(grid_of(8), ddpm), NOISE)

    whole, part = (Edit(images=IMAGES, masks=LEFT, strength=strength) for strength in (1.0, 0.5))
    np.testing.assert_array_equal(start(whole), NOISE)
    np.testing.assert_array_equal(start(part), noised(KEYS, last_part(grid_of(8), 0.5), IMAGES))
    everything = dataclasses.replace(whole, masks=jnp.ones_like(LEFT))
    plain = sample(KEYS, CURVED, samplers.make("ddpm"), grid_of(8), NOISE)
    np.testing.assert_array_equal(walk(everything), plain)


def test_pictures_masks_shares_and_strengths_of_equal_shape_do_not_recompile():
    def compiled():
        return samplers._walk_jit._cache_size()

    edits = [
        [Edit(images=IMAGES[::step], masks=masks, strength=strength).of(jnp.arange(6)) for masks in (LEFT, ~LEFT)]
        for step, strength in ((1, 0.5), (-1, 0.52))  # 4 of 8 steps, both
    ]
    walk(edits[0][0])
    before = compiled()
    others = [walk(edit) for pair in edits for edit in pair]
    assert compiled() == before
    assert len({np.asarray(other).tobytes() for other in others}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": IMAGES, "others": IMAGES}, "needs images, others and shares"),
        ({"images": IMAGES, "shares": jnp.zeros(6)}, "needs images, others and shares"),
        ({"others": IMAGES, "shares": jnp.zeros(6)}, "needs images, others and shares"),
        ({"masks": LEFT}, "masks and inversion are for images"),
        ({"inverted": True}, "masks and inversion are for images"),
        ({"images": IMAGES, "repeats": 2}, "repeats are for masks"),
        ({"images": IMAGES, "masks": LEFT, "inverted": True}, "masks go neither with shares nor with inversion"),
        ({"images": IMAGES, "others": IMAGES, "masks": LEFT, "shares": jnp.zeros(6)}, "masks go neither"),
    ],
)
def test_edits_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Edit(**settings)


def test_a_mask_of_another_size_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"masks of \(4, 3\) pixels are for pictures of that size, not \(4, 4\)"):
        inpaint(samplers.make("ddpm"), IMAGES, LEFT[:, :, :3])
