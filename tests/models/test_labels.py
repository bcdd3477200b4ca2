"""Conditions of nets: labels, numbers, and the row for none. Hiding them is in test_step.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import SMALLEST, apply, draw, inputs

LABELLED = dataclasses.replace(SMALLEST, num_classes=3)
NUMBERS = dataclasses.replace(SMALLEST, labels_are="numbers")
HIDING = dataclasses.replace(LABELLED, label_dropout=0.25)


def test_labels_change_the_output_and_cannot_be_left_out():
    net, params = draw(LABELLED)
    xt, t, labels = inputs(net)
    other = np.array([0, 2], np.int32)
    change = np.abs(apply(net, params, xt, t, labels) - apply(net, params, xt, t, other))
    assert change[0].max() < 1e-6 < 1e-3 < change[1].max()
    with pytest.raises(ValueError, match="made for 3 classes: give it labels"):
        net.apply(params, xt, t)
    assert net.unconditional(2) is None


def test_labels_that_are_numbers_keep_their_fractions_and_t_its_digits():
    net, params = draw(NUMBERS)
    xt, _, _ = inputs(net)
    t, labels = jnp.array([1001, 3]), jnp.array([0.25, 0.75])
    found = apply(net, params, xt, t, labels)
    other = apply(net, params, xt, t.astype(jnp.float32), labels.astype(jnp.bfloat16))
    np.testing.assert_allclose(found, other, atol=1e-6)
    assert np.abs(found - apply(net, params, xt, t, jnp.zeros(2))).max() > 1e-3


def test_fractions_are_no_labels_of_a_net_that_learned_whole_timesteps():
    net = dataclasses.replace(NUMBERS, time_embedding="learned", timesteps=10)
    xt, _, _ = inputs(net)
    with pytest.raises(ValueError, match="integer"):
        jax.eval_shape(net.apply, net.shapes(), xt, jnp.array([1, 2]), jnp.array([0.5, 1.5]))


def test_minus_1_and_no_condition_are_the_last_row_of_the_embedding():
    net, params = draw(HIDING)
    rows = params["class_embedding"]["embedding"]
    assert rows.shape[0] == 4
    xt, t, labels = inputs(net)
    none = net.unconditional(2)
    np.testing.assert_array_equal(none, [-1, -1])
    unconditional = apply(net, params, xt, t, none)
    np.testing.assert_array_equal(apply(net, params, xt, t), unconditional)
    mixed = apply(net, params, xt, t, labels.at[0].set(-1))
    np.testing.assert_allclose(mixed[0], unconditional[0], atol=1e-6)
    assert np.abs(mixed[1] - unconditional[1]).max() > 1e-3
    moved = params | {"class_embedding": {"embedding": rows + np.eye(4, dtype=np.float32)[3:].T}}
    np.testing.assert_array_equal(
        apply(net, moved, xt, t, labels), apply(net, params, xt, t, labels)
    )
    assert np.abs(apply(net, moved, xt, t, none) - unconditional).max() > 1e-3


def test_apply_hides_no_label():
    """With keys of dropout too: `training.step.hide_conditions` does it before."""
    net, params = draw(HIDING)
    xt, t, labels = inputs(net)
    keys = jax.random.split(jax.random.key(3), 2)
    apply = lambda keys: net.apply(params, xt, t, labels, dropout_keys=keys)  # noqa: E731
    assert "random_bits" not in str(jax.make_jaxpr(apply)(keys))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_classes": None, "label_dropout": 0.1},
            "label_dropout hides labels, which this net does not have",
        ),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), not 1.0"),
        ({"label_dropout": -0.1}, "label_dropout must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_wrong_settings_of_labels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LABELLED, **settings)
