"""Curves and labelled rows: every point and pixel is in its place."""

import numpy as np
import pytest
from helpers.images import files, load, random_images

from ddpm_jax.figures import plots
from ddpm_jax.figures.image_grids import image_grid
from ddpm_jax.figures.plots import loss_curve


def test_labelled_rows_needs_at_least_one_row(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        plots.labelled_rows([], tmp_path / "x.png")


def ink(picture: np.ndarray) -> list[int]:
    """The number of dark blue pixels in the left and in the right half."""
    distance = np.abs(picture[..., :3].astype(int) - (0x1F, 0x4E, 0x79))
    dark = (distance < 8).all(axis=-1)
    return [int(half.sum()) for half in np.array_split(dark, 2, axis=1)]


def test_the_loss_is_drawn_in_both_panels(tmp_path):
    steps = np.arange(400)
    path = tmp_path / "new" / "loss.png"
    loss_curve(steps, np.exp(-steps / 80), path, title="a$_{$")
    left, right = ink(load(path))
    assert min(left, right) > 500
    assert files(tmp_path / "new") == ["loss.png"]


def test_a_single_loss_is_visible(tmp_path):
    loss_curve([10], [0.3], tmp_path / "one.png", title="one")
    loss_curve([10], [np.nan], tmp_path / "none.png", title="one")
    drawn = [ink(load(tmp_path / name)) for name in ("one.png", "none.png")]
    assert all(one > none for one, none in zip(*drawn, strict=True))


def test_losses_that_cannot_be_drawn_are_gaps(tmp_path):
    """Non-finite losses and losses without a logarithm neither warn nor hide the others."""
    losses = np.full(100, 0.5)
    losses[[3, 4, 5, 50]] = np.nan, np.inf, -np.inf, -0.1
    loss_curve(range(100), losses, tmp_path / "gaps.png", title="gaps")
    loss_curve([1, 2], [0.0, -1.0], tmp_path / "negative.png", title="no logarithm")
    assert min(ink(load(tmp_path / "gaps.png"))) > 500


@pytest.mark.parametrize("n", [1, 2, 4, 5, 300])
def test_running_mean_averages_the_finite_values_in_the_window(n):
    values = np.random.default_rng(0).uniform(size=n)
    values[n // 2 :: 7] = np.nan
    # Differences of a cumulative sum would lose all values after this one.
    values[-1] = 1e20
    values = values[::-1]
    means, window = plots._running_mean(values)
    assert window % 2 == 1
    for i, mean in enumerate(means):
        inside = values[max(i - window // 2, 0) : i + window // 2 + 1]
        inside = inside[np.isfinite(inside)]
        np.testing.assert_allclose(mean, inside.mean() if inside.size else np.nan, rtol=1e-12)


def test_loss_curve_needs_one_loss_a_step(tmp_path):
    for steps, losses in (([], []), ([1, 2], [0.1])):
        with pytest.raises(ValueError, match="one loss a step"):
            loss_curve(steps, losses, tmp_path / "x.png", title="")


def test_labelled_rows_show_every_pixel_beside_their_labels(tmp_path):
    rows = [
        ("input", random_images(3, 8, 8, 1)),
        ("a much longer label", random_images(2, 32, 32, 3)),
    ]
    plots.labelled_rows(rows, tmp_path / "x.png")
    picture = load(tmp_path / "x.png")[..., :3]
    widest = max(image_grid(images, columns=len(images)).width for _, images in rows)
    top = 10
    left = picture.shape[1] - 10 - widest
    for _, images in rows:
        strip = np.asarray(image_grid(images, columns=len(images)).convert("RGB"))
        h, w = strip.shape[:2]
        np.testing.assert_array_equal(picture[top : top + h, left : left + w], strip)
        assert (picture[top : top + h, : left - 10] < 128).any()  # the label
        assert (picture[top : top + h, :5] == 255).all()  # it is not cut off
        top += h
    assert picture.shape[0] == top + 10


def test_titles_stand_above_the_columns_and_move_no_pixel(tmp_path):
    rows = [("word", random_images(2, 96, 96, 3))]
    plots.labelled_rows(rows, tmp_path / "plain.png")
    plots.labelled_rows(rows, tmp_path / "titled.png", ["left", "right"])
    plain, titled = (load(tmp_path / f"{name}.png")[..., :3] for name in ("plain", "titled"))
    room = len(titled) - len(plain)
    strip = titled.shape[1] - 10 - 198
    np.testing.assert_array_equal(titled[10 + room :, strip:], plain[10:, strip:])
    for half in np.array_split(titled[: 10 + room, strip:], 2, axis=1):
        assert (half < 128).any()


def test_the_bound_is_drawn_with_any_number_of_terms(tmp_path):
    for name, terms in {"one": [0.3, 0.0], "many": 1 / np.arange(1, 900)}.items():
        plots.bound_curve(terms, tmp_path / f"{name}.png", title="a$_{$")
    one, many = (sum(ink(load(tmp_path / f"{name}.png"))) for name in ("one", "many"))
    assert many > one > 0
    with pytest.raises(ValueError, match="one term a timestep"):
        plots.bound_curve([0.0, np.nan], tmp_path / "x.png", "")
