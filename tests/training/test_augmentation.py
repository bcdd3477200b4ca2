"""The augmentation of EDM: each transformation, its numbers, and how the network is told."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import SMALLEST, apply, draw, inputs

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.conditions import AUGMENTATION_NUMBERS, AugmentationKind
from ddpm_jax.training.augmentation import (
    MEMBERS,
    SIZES,
    augment,
    describe,
    draw_parameters,
    recolour,
    resample,
)
from ddpm_jax.training.step import model_loss

KINDS = typing.get_args(AugmentationKind)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
NAMES = [name for names in MEMBERS.values() for name in names]


def parameters(n=3, **given):
    """Parameters that are 0 but for the given ones."""
    zeros = {name: jnp.zeros((n, SIZES.get(name, 1)), jnp.float32) for name in NAMES}
    return zeros | {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), zeros[name].shape)
        for name, value in given.items()
    }


def test_images_as_they_are_keep_their_bits_and_have_no_numbers():
    none = parameters()
    np.testing.assert_array_equal(resample(IMAGES, none), IMAGES)
    np.testing.assert_allclose(recolour(IMAGES, none), IMAGES, atol=1e-6)
    np.testing.assert_array_equal(describe(none), np.zeros((3, AUGMENTATION_NUMBERS)))


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        draw_parameters(jax.random.split(jax.random.key(0), 2), KINDS, 0.5)


def mirrored(images, rows, columns):
    """Images moved down and right by whole pixels, mirrored at the borders."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
    return padded[:, 4 - rows : 12 - rows, 4 - columns : 12 - columns]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x_flip": 1}, IMAGES[:, :, ::-1]),
        ({"y_flip": 1}, IMAGES[:, ::-1]),
        ({"turn": 1}, np.rot90(IMAGES, 1, (1, 2))),
        ({"turn": 2}, np.rot90(IMAGES, 2, (1, 2))),
        ({"turn": 3}, np.rot90(IMAGES, 3, (1, 2))),
        ({"shift": [1, 0]}, mirrored(IMAGES, 0, 1)),
        ({"shift": [0, -1]}, mirrored(IMAGES, -1, 0)),
        ({"translation": [2, 0]}, mirrored(IMAGES, 0, 2)),
        ({"rotation": 0.5}, np.rot90(IMAGES, 1, (1, 2))),
        ({"rotation": 1}, np.rot90(IMAGES, 2, (1, 2))),
    ],
)
def test_pixels_that_stay_pixels_are_moved(given, expected):
    moved = resample(IMAGES, parameters(**given))
    exact = not {"rotation"} & set(given)
    np.testing.assert_allclose(moved, expected, atol=1e-6 if exact else 1e-5)


def test_scaling_and_stretching_enlarge_about_the_centre():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None] - 3.5, (3, 8, 8, 1))
    both = jnp.concatenate([ramp, ramp.swapaxes(1, 2)], -1)  # x and y of each pixel
    enlarged = np.asarray(resample(both, parameters(scale=5)))  # by a factor of 2
    np.testing.assert_allclose(enlarged, np.asarray(both) / 2, atol=1e-5)
    stretched = np.asarray(resample(both, parameters(stretch=[5, 0])))[:, 3:5]
    np.testing.assert_allclose(stretched[..., 0], np.asarray(both)[:, 3:5, :, 0] / 2, atol=1e-5)
    np.testing.assert_allclose(stretched[..., 1], np.asarray(both)[:, 3:5, :, 1] * 2, atol=1e-5)


def test_colours_are_moved_along_and_about_the_grey_axis():
    x = np.asarray(IMAGES)
    grey = x.mean(-1, keepdims=True)
    cases = {
        "brightness": (1, x + 0.2),
        "contrast": (2, x * 2),
        "luma_flip": (1, x - 2 * grey),
        "saturation": (1, grey + 2 * (x - grey)),
        # A third of a turn takes red to green, green to blue and blue to red.
        "hue": (2 / 3, x[..., [2, 0, 1]]),
    }
    for name, (value, expected) in cases.items():
        ours = recolour(IMAGES, parameters(**{name: value}))
        np.testing.assert_allclose(ours, expected, atol=2e-6, err_msg=name)
    level = recolour(IMAGES[..., :1], parameters(hue=0.5, saturation=1, luma_flip=1))
    np.testing.assert_allclose(level, -x[..., :1], atol=1e-6)


def test_each_transformation_is_told_by_numbers_of_its_own():
    told = {name: np.asarray(describe(parameters(**{name: 0.25})))[0] != 0 for name in NAMES}
    columns = np.stack(list(told.values()))
    assert columns.shape == (len(NAMES), AUGMENTATION_NUMBERS)
    np.testing.assert_array_equal(columns.sum(0), np.ones(AUGMENTATION_NUMBERS))


def test_transformations_of_the_chosen_kinds_are_drawn_with_their_probability():
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    for kind in KINDS:
        drawn = draw_parameters(keys, (kind,), 0.25)
        for name, values in drawn.items():
            values = np.asarray(values)
            if name not in MEMBERS[kind]:
                assert not values.any(), (kind, name)
                continue
            changed = np.any(values != 0, 1).mean()
            # Half of the flips, and a quarter of the turns, change nothing.
            share = {"x_flip": 0.5, "y_flip": 0.5, "luma_flip": 0.5, "turn": 0.75}.get(name, 1)
            assert abs(changed - 0.25 * share) < 0.03, name
            if share == 1:
                assert len(np.unique(values[:, 0])) > 800, name
    again = draw_parameters(keys[::-1], KINDS, 0.25)["scale"][::-1]
    np.testing.assert_array_equal(again, draw_parameters(keys, KINDS, 0.25)["scale"])


NET = dataclasses.replace(SMALLEST, channels=3, augmentation=KINDS, augmentation_probability=0.5)


def test_the_loss_augments_images_and_tells_the_network(monkeypatch):
    seen = []

    def apply_to(self, params, xt, t, condition, **options):
        seen.append(condition)
        return xt

    monkeypatch.setattr(type(NET), "apply", apply_to)
    keys = jax.random.split(jax.random.key(0), 3)
    loss = model_loss(NET, Objective(schedule="squaredcos", timesteps=20))
    loss({}, keys, {"image": IMAGES})
    [condition] = seen
    assert condition["augmentation"].shape == (3, AUGMENTATION_NUMBERS)
    assert np.any(condition["augmentation"] != 0)


def test_without_numbers_a_network_draws_images_as_they_are():
    net, params = draw(NET)
    xt, t, _ = inputs(net)
    plain = apply(net, params, xt, t)
    numbers = jnp.zeros((2, AUGMENTATION_NUMBERS))
    np.testing.assert_array_equal(apply(net, params, xt, t, {"augmentation": numbers}), plain)
    told = apply(net, params, xt, t, {"augmentation": numbers.at[1, 4].set(1)})
    np.testing.assert_allclose(told[0], plain[0], atol=1e-6)
    assert np.abs(told[1] - plain[1]).max() > 1e-3


def test_augmented_images_differ_with_their_keys_alone():
    keys = jax.random.split(jax.random.key(1), 3)
    images, numbers = jax.jit(augment, static_argnums=(2, 3))(keys, IMAGES, KINDS, 0.9)
    again, others = jax.jit(augment, static_argnums=(2, 3))(keys[::-1], IMAGES[::-1], KINDS, 0.9)
    np.testing.assert_allclose(again[::-1], images, atol=1e-5)
    np.testing.assert_allclose(others[::-1], numbers, atol=1e-6)
    assert np.abs(images - IMAGES).max() > 0.1


def test_settings_of_augmentation_are_checked():
    with pytest.raises(ValueError, match=r"leave augmentation or condition_channels out"):
        dataclasses.replace(NET, condition_channels=1)
    with pytest.raises(ValueError, match=r"augmentation_probability must be in \[0, 1\), not 1.0"):
        dataclasses.replace(NET, augmentation_probability=1.0)
