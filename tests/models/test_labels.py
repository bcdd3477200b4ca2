"""Conditions of networks: class labels, numbers, and no class. test_step.py tests hiding them."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from helpers.nets import SMALLEST, apply, draw, inputs
from helpers.refusals import assert_refused

pytestmark = pytest.mark.usefixtures("without_kernels")

LABELLED = dataclasses.replace(SMALLEST, num_classes=3)
NUMBERS = dataclasses.replace(SMALLEST, labels_are="numbers")
HIDING = dataclasses.replace(LABELLED, label_dropout=0.25)


def test_labels_change_the_output_and_are_required():
    net, params = draw(LABELLED)
    xt, t, labels = inputs(net)  # labels [0, 1]
    other = np.array([0, 2], np.int32)
    change = np.abs(apply(net, params, xt, t, labels) - apply(net, params, xt, t, other))
    assert change[0].max() < 1e-6
    assert change[1].max() > 1e-3
    with pytest.raises(ValueError, match="made for 3 classes: give it labels"):
        net.apply(params, xt, t)
    assert net.unconditional(2) is None


def test_number_labels_keep_their_fractions_and_t_its_precision():
    net, params = draw(NUMBERS)
    xt, _, _ = inputs(net)
    t = jnp.array([1001, 3])
    labels = jnp.array([0.25, 0.75])
    output = apply(net, params, xt, t, labels)
    same = apply(net, params, xt, t.astype(jnp.float32), labels.astype(jnp.bfloat16))
    np.testing.assert_allclose(output, same, atol=1e-6)
    assert np.abs(output - apply(net, params, xt, t, jnp.zeros(2))).max() > 1e-3


def test_a_learned_time_embedding_refuses_fractional_labels():
    net = dataclasses.replace(NUMBERS, time_embedding="learned", timesteps=10)
    xt, _, _ = inputs(net)
    with pytest.raises(ValueError, match="integer"):
        jax.eval_shape(net.apply, net.shapes(), xt, jnp.array([1, 2]), jnp.array([0.5, 1.5]))


def test_label_minus_1_and_no_condition_use_the_last_embedding_row():
    net, params = draw(HIDING)
    rows = params["class_embedding"]["embedding"]
    assert rows.shape[0] == 4
    xt, t, labels = inputs(net)
    no_class = net.unconditional(2)
    np.testing.assert_array_equal(no_class, [-1, -1])
    unconditional = apply(net, params, xt, t, no_class)
    np.testing.assert_array_equal(apply(net, params, xt, t), unconditional)

    mixed = apply(net, params, xt, t, labels.at[0].set(-1))
    np.testing.assert_allclose(mixed[0], unconditional[0], atol=1e-6)
    assert np.abs(mixed[1] - unconditional[1]).max() > 1e-3

    # Only the last row of the table changes.
    last_row_moved = rows + np.eye(4, dtype=np.float32)[3:].T
    moved = params | {"class_embedding": {"embedding": last_row_moved}}
    conditional = apply(net, params, xt, t, labels)
    np.testing.assert_array_equal(apply(net, moved, xt, t, labels), conditional)
    assert np.abs(apply(net, moved, xt, t, no_class) - unconditional).max() > 1e-3


def test_apply_hides_no_labels_even_with_dropout_keys():
    """Labels are hidden by `training.step.hide_conditions` before."""
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
            "label_dropout drops labels, but this network has none",
        ),
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), not 1.0"),
        ({"label_dropout": -0.1}, "label_dropout must be in"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_invalid_label_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LABELLED, **settings)


def test_timesteps_labels_and_keys_need_one_row_per_image(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    xt, t, labels = inputs(LABELLED)
    keys = jax.random.split(jax.random.key(0), 1)
    cases = [
        ((t[:1], labels, None), "t must have shape"),
        ((t, labels[:1], None), "condition must have 2 rows, one per image"),
        ((t, labels, keys), "dropout_keys must have shape"),
    ]
    shapes = LABELLED.shapes()

    def apply_to(case):
        LABELLED.apply(shapes, xt, *case[:2], dropout_keys=case[2])

    assert_refused(apply_to, cases)
