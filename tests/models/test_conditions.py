"""Conditions beside labels: what the network does with them, and with hidden ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import CONV_UNET, SMALLEST, apply, draw, inputs
from helpers.refusals import assert_refused

from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.models import Model
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.conditions import add_condition_noise, label_rows
from ddpm_jax.settings_json import from_json, to_json
from ddpm_jax.training.step import hide_conditions, model_loss

pytestmark = pytest.mark.usefixtures("without_kernels")

VECTORS = dataclasses.replace(SMALLEST, vector_size=2)
HIDING = dataclasses.replace(VECTORS, num_classes=3, label_dropout=0.5)
VECTOR = jnp.asarray([[0.5, -1.0], [2.0, 0.0]], jnp.float32)


def test_a_vector_changes_the_output_of_its_own_image():
    net, params = draw(VECTORS)
    xt, t, _ = inputs(net)
    first = apply(net, params, xt, t, {"vector": VECTOR})
    second = apply(net, params, xt, t, {"vector": VECTOR.at[1, 1].set(1)})
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.abs(first[1] - second[1]).max() > 1e-3
    assert net.unconditional(2) is None


def test_hidden_parts_and_no_condition_are_unconditional():
    net, params = draw(HIDING)
    xt, t, labels = inputs(net)
    nothing = net.unconditional(2)
    hidden = apply(net, params, xt, t, nothing)
    np.testing.assert_array_equal(hidden, apply(net, params, xt, t))
    mixed = {"label": labels.at[0].set(-1), "vector": VECTOR.at[0].set(nothing["vector"][0])}
    output = apply(net, params, xt, t, mixed)
    np.testing.assert_allclose(output[0], hidden[0], atol=1e-6)
    assert np.abs(output[1] - hidden[1]).max() > 1e-3
    # Being hidden is told apart from the mean of all vectors, which is 0.
    at_mean = apply(net, params, xt, t, nothing | {"vector": jnp.zeros((2, 2))})
    assert np.abs(at_mean - hidden).max() > 1e-3


def test_all_parts_of_a_condition_are_hidden_together():
    labels = jnp.asarray(np.arange(64) % 3, jnp.int32)
    condition = {"label": labels, "vector": jnp.ones((64, 2), jnp.float32)}
    keys = jax.random.split(jax.random.key(0), 64)
    hidden = hide_conditions(keys, HIDING, condition)
    rows = np.asarray(hidden["label"]) == -1
    assert 10 < rows.sum() < 54
    np.testing.assert_array_equal((hidden["vector"] != 1).all(1), rows)


def test_the_loss_gives_the_network_the_vectors_of_the_batch():
    net, params = draw(VECTORS)
    loss = jax.jit(model_loss(net, Objective(schedule="squaredcos", timesteps=20)))
    keys = jax.random.split(jax.random.key(0), 2)
    xt, _, labels = inputs(net)
    batch = {"image": xt, "label": labels, "vector": VECTOR}
    first = loss(params, keys, batch)
    second = loss(params, keys, batch | {"vector": VECTOR.at[0].add(1)})
    assert first[0] != second[0]
    np.testing.assert_allclose(first[1], second[1], rtol=1e-6)
    with pytest.raises(ValueError, match="conditioned on vector: give it in each batch"):
        loss(params, keys, {"image": xt, "label": labels})


def test_a_batch_without_the_labels_of_a_network_is_refused():
    """With label dropout they would count as hidden."""
    net = dataclasses.replace(SMALLEST, num_classes=3, label_dropout=0.1)
    with pytest.raises(ValueError, match="conditioned on label: give it in each batch"):
        net.condition_of({"image": IMAGE})


def test_a_condition_without_one_of_its_parts_is_refused():
    """With label dropout the part would count as hidden."""
    net = dataclasses.replace(VECTORS, num_classes=3, label_dropout=0.1)
    xt, t, labels = inputs(net)
    cases = [
        ({"vector": VECTOR}, "conditioned on label: give it in each batch"),
        ({"label": labels}, "conditioned on vector: give it in each batch"),
    ]
    assert_refused(lambda condition: net.apply(net.shapes(), xt, t, condition), cases)


@pytest.mark.parametrize("label_dropout", [0.0, 0.5])
def test_a_label_out_of_range_gives_nan_on_both_sides(label_dropout):
    """With label dropout, -1 stands for no class."""
    net, params = draw(dataclasses.replace(SMALLEST, num_classes=3, label_dropout=label_dropout))
    xt, t, _ = inputs(net)
    for label, is_nan in ((-1, not label_dropout), (0, False), (2, False), (3, True)):
        out = net.apply(params, xt, t, jnp.full(2, label, jnp.int32))
        assert np.isnan(out).any() == is_nan, label


def test_labels_of_8_bits_are_those_of_32():
    net = dataclasses.replace(SMALLEST, num_classes=256, label_dropout=0.1)
    labels = [0, 1, 7, 255]
    for dtype in (np.uint8, np.int32):
        rows = label_rows(net, jnp.asarray(labels, dtype), 4)
        np.testing.assert_array_equal(rows, labels)


def test_labels_of_a_network_without_labels_are_refused_and_left_in_the_batch():
    xt, t, _ = inputs(SMALLEST)
    assert SMALLEST.num_classes is None
    with pytest.raises(ValueError, match="This network takes no condition: leave it out"):
        SMALLEST.apply(SMALLEST.shapes(), xt, t, jnp.zeros(2, jnp.int32))
    assert SMALLEST.condition_of({"label": jnp.zeros(2)}) is None
    numbers = dataclasses.replace(SMALLEST, labels_are="numbers")
    assert numbers.condition_of({"label": 3}) == 3


def test_conditions_that_do_not_fit_are_refused():
    xt, t, _ = inputs(VECTORS)
    shapes = VECTORS.shapes()
    cases = [
        (None, "This network is conditioned on a vector: give it one"),
        ({"vector": VECTOR[:1]}, "condition must have 2 rows, one per image"),
        ({"vector": VECTOR[:, :1]}, r"vector must have shape \(2, 2\)"),
        (VECTOR, "takes a dict of vector: make one by `condition_of`"),
        ({"vectors": VECTOR}, "takes a dict of vector: make one by `condition_of`"),
    ]
    assert_refused(lambda condition: VECTORS.apply(shapes, xt, t, condition), cases)
    settings = [
        ((CONV_UNET, {"vector_size": 1}), "ConvUNet takes no condition: leave vector_size out"),
        (
            (BasicUNet(image_size=8, channels=1), {"num_classes": 3}),
            "BasicUNet takes no condition: leave num_classes out, or use the UNet",
        ),
        ((SMALLEST, {"vector_size": 0}), "vector_size must be at least 1, not 0"),
        (
            (SMALLEST, {"condition_channels": 1, "center_input": True}),
            "center_input would also shift the condition image: leave one out",
        ),
        (
            (VECTORS, {"labels_are": "numbers"}),
            "needs labels that are classes, not numbers: leave labels_are out",
        ),
    ]
    assert_refused(lambda case: dataclasses.replace(case[0], **case[1]), settings)


SUPER = dataclasses.replace(SMALLEST, condition_channels=2, condition_noise=0.5, label_dropout=0.5)
add_noise = jax.jit(add_condition_noise)
IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 4, 2)), jnp.float32)


def test_an_image_changes_the_output_of_its_own_image():
    net, params = draw(SUPER)
    xt, t, _ = inputs(net)
    condition = net.condition_of({"condition_image": IMAGE})
    first = apply(net, params, xt, t, condition)
    second = apply(net, params, xt, t, condition | {"condition_image": IMAGE.at[1].add(1)})
    assert first.shape == xt.shape
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.abs(first[1] - second[1]).max() > 1e-3
    told = apply(net, params, xt, t, condition | {"condition_noise": jnp.array([0, 0.4])})
    assert np.abs(first[1] - told[1]).max() > 1e-3
    # Without an image it is hidden, and without a level there is no noise.
    np.testing.assert_array_equal(
        apply(net, params, xt, t), apply(net, params, xt, t, net.unconditional(2))
    )


def test_a_hidden_image_is_told_apart_from_a_grey_one():
    net, params = draw(SUPER)
    xt, t, _ = inputs(net)
    grey = net.condition_of({"condition_image": jnp.zeros((2, 4, 4, 2))})
    assert np.abs(apply(net, params, xt, t, grey) - apply(net, params, xt, t)).max() > 1e-3


def test_a_hidden_image_stays_hidden_under_noise():
    keys = jax.random.split(jax.random.key(0), 2)
    mixed = SUPER.unconditional(2)["condition_image"].at[1].set(IMAGE[1])
    noisy = add_noise(keys, {"condition_image": mixed}, np.full(2, 0.4, np.float32))
    np.testing.assert_array_equal(noisy["condition_image"][0], mixed[0])
    np.testing.assert_array_equal(noisy["condition_noise"], np.float32([0, 0.4]))
    assert np.abs(noisy["condition_image"][1]).max() < 10


def test_saved_networks_without_the_flag_hide_an_image_by_zeros():
    saved = to_json(SUPER)
    del saved["hidden_flag"]
    former = from_json(Model, saved, "model")
    assert not former.hidden_flag
    channels = {net.shapes()["conv_in"]["kernel"].shape[2] for net in (SUPER, former)}
    assert channels == {3, 4}
    assert not np.any(former.unconditional(2)["condition_image"])
    # Networks that hide no image are the same with and without it.
    plain = to_json(HIDING)
    del plain["hidden_flag"]
    assert from_json(Model, plain, "model") == HIDING


def test_condition_noise_keeps_the_variance_and_comes_from_each_key():
    n = 500
    keys = jax.random.split(jax.random.key(0), n)
    image = np.float32(np.random.default_rng(0).normal(size=(n, 4, 4, 1)))
    std = np.linspace(0, 1, n, dtype=np.float32)
    noisy = add_noise(keys, {"condition_image": image}, std)
    np.testing.assert_array_equal(noisy["condition_noise"], std)
    np.testing.assert_array_equal(noisy["condition_image"][0], image[0])
    assert abs(float(noisy["condition_image"].std()) - 1) < 0.03
    error = noisy["condition_image"] - np.sqrt(1 - std**2)[:, None, None, None] * image
    np.testing.assert_allclose(error[400:].std(), np.sqrt(np.mean(std[400:] ** 2)), rtol=0.05)
    again = add_noise(keys[::-1], {"condition_image": image[::-1]}, std[::-1])
    np.testing.assert_allclose(again["condition_image"][::-1], noisy["condition_image"], atol=1e-6)


def test_the_loss_adds_noise_up_to_the_limit_and_tells_the_network(monkeypatch):
    model = dataclasses.replace(SUPER, label_dropout=0.0)
    seen = []

    def apply_to(self, params, xt, t, condition, **options):
        seen.append(condition)
        return xt

    monkeypatch.setattr(type(model), "apply", apply_to)
    n = 200
    keys = jax.random.split(jax.random.key(0), n)
    zeros = jnp.zeros((n, 4, 4, 2))
    loss = model_loss(model, Objective(schedule="squaredcos", timesteps=20))

    @jax.jit
    def condition_of(keys, zeros):
        loss({}, keys, {"image": zeros[..., :1], "condition_image": zeros})
        return seen.pop()

    condition = condition_of(keys, zeros)
    assert not seen
    levels = np.asarray(condition["condition_noise"])
    assert 0 <= levels.min() < 0.02
    assert 0.48 < levels.max() < 0.5
    measured = np.asarray(condition["condition_image"]).std((1, 2, 3))
    assert np.corrcoef(levels, measured)[0, 1] > 0.9


def test_settings_of_a_condition_image_are_checked():
    xt, t, _ = inputs(SUPER)
    net = dataclasses.replace(SUPER, label_dropout=0.0)
    shapes = net.shapes()
    cases = [
        (None, "This network is conditioned on an image: give it one"),
        ({"condition_image": IMAGE[..., :1]}, r"condition_image must have shape \(2, 4, 4, 2\)"),
        (
            {"condition_image": IMAGE, "condition_noise": jnp.zeros((2, 1))},
            r"condition_noise must have shape \(2,\)",
        ),
    ]
    assert_refused(lambda condition: net.apply(shapes, xt, t, condition), cases)
    with pytest.raises(ValueError, match=r"is for an image to concatenate: set condition_channels"):
        dataclasses.replace(SMALLEST, condition_noise=0.5)
    with pytest.raises(ValueError, match=r"condition_noise must be in \[0, 1\), not 1.0"):
        dataclasses.replace(SUPER, condition_noise=1.0)
