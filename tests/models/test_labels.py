"""Labels that nets are given, and labels hidden from them in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import UNET, apply, draw, inputs


def test_labels_change_the_output_and_cannot_be_left_out():
    net, params = draw(UNET)
    xt, t, labels = inputs(net)
    run = lambda labels: apply(net, params, xt, t, labels, dtype="float32")  # noqa: E731
    change = np.abs(run(labels) - run(labels.at[1].set(2)))
    assert change[0].max() < 1e-6 < 1e-3 < change[1].max()
    with pytest.raises(ValueError, match="made for 3 classes: give it labels"):
        net.apply(params, xt, t)


NUMBERS = dataclasses.replace(UNET, num_classes=None, labels_are="numbers")


def test_labels_that_are_numbers_keep_their_fractions_and_t_its_digits():
    net, params = draw(NUMBERS)
    xt, _, _ = inputs(net)
    t, labels = jnp.array([1001, 3]), jnp.array([0.25, 0.75])
    found = apply(net, params, xt, t, labels)
    np.testing.assert_allclose(found, apply(net, params, xt, t.astype(jnp.float32), labels), atol=1e-6)
    np.testing.assert_allclose(found, apply(net, params, xt, t, labels.astype(jnp.bfloat16)), atol=1e-6)
    assert np.abs(found - apply(net, params, xt, t, jnp.zeros(2, jnp.int32))).max() > 1e-3


def test_fractions_are_no_labels_of_a_net_that_learned_whole_timesteps():
    net = dataclasses.replace(NUMBERS, time_embedding="learned", timesteps=10)
    xt, _, _ = inputs(net)
    with pytest.raises(ValueError, match="integer"):
        jax.eval_shape(net.apply, net.shapes(), xt, jnp.array([1, 2]), jnp.array([0.5, 1.5]))


HIDING = dataclasses.replace(UNET, label_dropout=0.25)


def test_a_net_that_hides_labels_knows_one_more_which_is_said_by_minus_1_or_by_nothing():
    net, params = draw(HIDING)
    assert params["class_embedding"]["embedding"].shape[0] == 4
    xt, t, labels = inputs(net)
    unsaid = apply(net, params, xt, t)
    np.testing.assert_array_equal(apply(net, params, xt, t, jnp.full(2, -1)), unsaid)
    mixed = apply(net, params, xt, t, labels.at[0].set(-1))
    np.testing.assert_allclose(mixed[0], unsaid[0], atol=1e-6)
    assert np.abs(mixed[1] - unsaid[1]).max() > 1e-3
    rows = params["class_embedding"]["embedding"]
    moved = params | {"class_embedding": {"embedding": rows.at[3].add(1.0)}}
    np.testing.assert_array_equal(apply(net, moved, xt, t, labels), apply(net, params, xt, t, labels))
    assert np.abs(apply(net, moved, xt, t) - unsaid).max() > 1e-3


def test_labels_are_hidden_by_their_share_where_there_are_keys_and_only_there():
    net, count = HIDING, 4000
    labels, keys = jnp.arange(count) % 3, jax.random.split(jax.random.key(0), count)
    hidden = net._hide(labels, keys, count)
    share = float(jnp.mean(hidden == 3))
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_array_equal(jnp.where(hidden == 3, labels, hidden), labels)
    assert all(abs(float(jnp.mean(hidden[i::3] == 3)) - 0.25) < 0.06 for i in range(3))
    np.testing.assert_array_equal(net._hide(labels, None, count), labels)
    np.testing.assert_array_equal(net._hide(labels[7:9], keys[7:9], 2), hidden[7:9])
    assert jnp.any(net._hide(labels, jax.random.split(jax.random.key(1), count), count) != hidden)


def test_training_hides_labels_by_the_dropout_keys():
    net, params = draw(HIDING)
    xt, t, labels = inputs(net, 8)
    keys = jax.random.split(jax.random.key(3), 8)
    hidden = net._hide(labels, keys, 8) == 3
    assert 0 < hidden.sum() < 8
    found = apply(net, params, xt, t, labels, dropout_keys=keys)
    np.testing.assert_allclose(found, apply(net, params, xt, t, jnp.where(hidden, -1, labels)), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": None, "label_dropout": 0.1}, "label_dropout hides labels, which this net does not have"),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), not 1.0"),
        ({"label_dropout": -0.1}, "label_dropout must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_wrong_settings_of_labels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNET, **settings)
