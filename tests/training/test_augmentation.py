"""The augmentation of EDM: each transformation, its numbers, and how the network is told."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import SMALLEST, apply, draw, inputs

from ddpm_jax import draws
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models.conditions import AUGMENTATION_NUMBERS, AugmentationKind
from ddpm_jax.training import augmentation, step
from ddpm_jax.training.augmentation import (
    MEMBERS,
    SIZES,
    draw_parameters,
    names_of,
    whole_pixels,
)
from ddpm_jax.training.step import model_loss

KINDS = typing.get_args(AugmentationKind)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
NAMES = [name for names in MEMBERS.values() for name in names]
move_pixels, resample, recolour, describe = map(
    jax.jit,
    (
        augmentation.move_pixels,
        augmentation.resample,
        augmentation.recolour,
        augmentation.describe,
    ),
)
augment = jax.jit(augmentation.augment, static_argnums=(2, 3))


def parameters(n=3, **given):
    """Parameters that are 0 but for the given ones."""
    zeros = {name: np.zeros((n, SIZES.get(name, 1)), np.float32) for name in NAMES}
    return zeros | {
        name: np.broadcast_to(np.asarray(value, np.float32), zeros[name].shape)
        for name, value in given.items()
    }


def test_images_as_they_are_keep_their_bits_and_have_no_numbers():
    none = parameters()
    np.testing.assert_array_equal(move_pixels(IMAGES, none), IMAGES)
    np.testing.assert_array_equal(resample(IMAGES, none), IMAGES)
    np.testing.assert_allclose(recolour(IMAGES, none), IMAGES, atol=1e-6)
    np.testing.assert_array_equal(describe(none), np.zeros((3, AUGMENTATION_NUMBERS)))


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        draw_parameters(jax.random.split(jax.random.key(0), 2), NAMES, 0.5)


def mirrored(images, rows, columns):
    """Images moved down and right by whole pixels, mirrored at the borders."""
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect")
    return padded[:, 4 - rows : 12 - rows, 4 - columns : 12 - columns]


FLIPPED_AND_TURNED = np.rot90(IMAGES[:, :, ::-1], 1, (1, 2))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x_flip": 1}, IMAGES[:, :, ::-1]),
        ({"y_flip": 1}, IMAGES[:, ::-1]),
        ({"turn": 1}, np.rot90(IMAGES, 1, (1, 2))),
        ({"turn": 2}, np.rot90(IMAGES, 2, (1, 2))),
        ({"turn": 3}, np.rot90(IMAGES, 3, (1, 2))),
        ({"shift": [1, 0]}, mirrored(IMAGES, 0, 1)),
        ({"shift": [0, 1]}, mirrored(IMAGES, -1, 0)),
        ({"x_flip": 1, "turn": 1, "shift": [1, 0]}, mirrored(FLIPPED_AND_TURNED, 0, 1)),
        ({"translation": [2, 1]}, mirrored(IMAGES, 1, 2)),
        ({"rotation": 0.5}, np.rot90(IMAGES, 1, (1, 2))),
        ({"rotation": 1}, np.rot90(IMAGES, 2, (1, 2))),
    ],
)
def test_pixels_that_stay_pixels_are_moved(given, expected):
    moved = resample(move_pixels(IMAGES, parameters(**given)), parameters(**given))
    exact = not {"rotation"} & set(given)
    np.testing.assert_allclose(moved, expected, atol=1e-6 if exact else 1e-5)


RAMP = np.broadcast_to(np.arange(16, dtype=np.float32)[None, None, :, None] - 7.5, (1, 16, 16, 1))
PLACES = np.concatenate([RAMP, RAMP.swapaxes(1, 2)], -1)
"""The x and y of each pixel, from the centre."""


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_pixels_are_taken_from_the_places_of_edm():
    """Translate back first, then stretch, rotate and scale back (G_inv of EDM's augment.py)."""
    w, r, turn, scale = -0.7, 0.3, 0.2, -1.5
    given = {"stretch": [w, r], "rotation": turn, "scale": scale, "translation": [0.5, -0.25]}
    moved = np.asarray(resample(PLACES, parameters(1, **given)))[0]
    stretch = 2 ** (0.2 * w)
    inverse = np.eye(2) / 2 ** (0.2 * scale) @ rotation(np.pi * turn)
    inverse @= rotation(-np.pi * r) @ np.diag([1 / stretch, stretch]) @ rotation(np.pi * r)
    places = (np.asarray(PLACES[0]) - [1, -0.5]) @ inverse.T
    inside = (np.abs(places) < 7).all(-1)
    assert inside.sum() > 100
    np.testing.assert_allclose(moved[inside], places[inside], atol=1e-4)


def test_shifts_are_told_as_they_are_rounded():
    shift = jnp.asarray([[0.2, 0.6], [0.3, -0.9]], jnp.float32)
    # The largest shift is 2 pixels of 16 columns, and 1 pixel of 8 rows.
    np.testing.assert_array_equal(whole_pixels(shift, 8, 16), [[0, 1], [0.5, -1]])
    all_keys = [jax.random.split(jax.random.key(seed), 3) for seed in range(14)]
    numbers = np.concatenate([augment(keys, IMAGES, KINDS, 0.9)[1] for keys in all_keys])
    assert set(np.unique(numbers[:, 4:6])) == {-1, 0, 1}


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
    values = {"turn": 2}
    told = {
        name: np.asarray(describe(parameters(**{name: values.get(name, 0.25)})))[0] != 0
        for name in NAMES
    }
    columns = np.stack(list(told.values()))
    assert columns.shape == (len(NAMES), AUGMENTATION_NUMBERS)
    np.testing.assert_array_equal(columns.sum(0), np.ones(AUGMENTATION_NUMBERS))


def test_turns_are_told_by_the_flips_of_edm():
    turns = [describe(parameters(turn=turn))[0, 2:4].tolist() for turn in range(4)]
    assert turns == [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_images_are_told_only_the_colours_that_they_have():
    hidden = {channels: set(NAMES) - names_of(KINDS, channels) for channels in (1, 2, 3)}
    assert hidden == {1: {"hue", "saturation"}, 2: {"hue"}, 3: set()}


def test_half_of_the_stretches_are_along_an_axis():
    keys = jax.random.split(jax.random.key(0), 4000)  # as many as below, for the same programs
    direction = np.asarray(draw_parameters(keys, ("stretch",), 0.999)["stretch"])[:, 1]
    assert abs(np.mean(direction == 0) - 0.5) < 0.05
    assert -1 < direction.min() < -0.9


def test_transformations_of_the_chosen_kinds_are_drawn_with_their_probability():
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    for kind in KINDS:
        drawn = draw_parameters(keys, MEMBERS[kind], 0.25)
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
    again = draw_parameters(keys[::-1], NAMES, 0.25)["scale"][::-1]
    np.testing.assert_array_equal(again, draw_parameters(keys, NAMES, 0.25)["scale"])


NET = dataclasses.replace(SMALLEST, channels=3, augmentation=KINDS, augmentation_probability=0.5)


def test_the_loss_augments_images_and_tells_the_network(monkeypatch):
    seen = []
    trained_on = []
    plain_loss = Objective.loss

    def apply_to(self, params, xt, t, condition, **options):
        seen.append(condition)
        return xt

    def loss_of(self, keys, network, images, t=None):
        trained_on.append(images)
        return plain_loss(self, keys, network, images, t)

    monkeypatch.setattr(type(NET), "apply", apply_to)
    monkeypatch.setattr(Objective, "loss", loss_of)
    keys = jax.random.split(jax.random.key(0), 3)
    # The compiled function of the other tests.
    monkeypatch.setattr(step, "augment", augment)
    net = dataclasses.replace(NET, augmentation_probability=0.9)
    loss = model_loss(net, Objective(schedule="squaredcos", timesteps=20))
    loss({}, keys, {"image": IMAGES})
    [condition] = seen
    assert condition["augmentation"].shape == (3, AUGMENTATION_NUMBERS)
    own_keys = draws.fold_in_name(keys, "augmentation")
    images, numbers = augment(own_keys, IMAGES, KINDS, 0.9)
    np.testing.assert_allclose(trained_on[0], images, atol=1e-5)
    np.testing.assert_allclose(condition["augmentation"], numbers, atol=1e-6)
    assert np.abs(images - IMAGES).max() > 0.1


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
    images, numbers = augment(keys, IMAGES, KINDS, 0.9)
    again, others = augment(keys[::-1], IMAGES[::-1], KINDS, 0.9)
    np.testing.assert_allclose(again[::-1], images, atol=1e-5)
    np.testing.assert_allclose(others[::-1], numbers, atol=1e-6)
    assert np.abs(images - IMAGES).max() > 0.1


def test_settings_of_augmentation_are_checked():
    with pytest.raises(ValueError, match=r"leave augmentation or condition_channels out"):
        dataclasses.replace(NET, condition_channels=1)
    with pytest.raises(ValueError, match=r"augmentation_probability must be in \[0, 1\), not 1.0"):
        dataclasses.replace(NET, augmentation_probability=1.0)
