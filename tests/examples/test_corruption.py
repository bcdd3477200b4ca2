"""The corruption example: its equations at their limits, and one short run on digits."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory

pytestmark = pytest.mark.runs

EXAMPLE = Path(ddpm_jax.__file__).parents[1] / "examples" / "corruption.py"
SHAPE = (4, 4, 1)
KEYS = jax.random.split(jax.random.key(0), 8)
X0 = jax.random.uniform(jax.random.key(1), (8, *SHAPE))
NOISE = jax.random.uniform(jax.random.key(2), (8, *SHAPE))
BATCH = {"image": 2 * X0 - 1}
EPOCH_STEPS = 6
BATCH_SIZE = 16
STEPS = 10


def load_example() -> ModuleType:
    """Import the script by its path, because `examples` is not a package."""
    spec = importlib.util.spec_from_file_location("example_corruption", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corruption = load_example()


class FewDigits(Digits):
    """The first digits: an epoch has EPOCH_STEPS steps."""

    def load(self, image_size: int, channels: int) -> InMemory:
        digits = super().load(image_size, channels)
        return InMemory(digits.images[: EPOCH_STEPS * BATCH_SIZE])


@pytest.fixture
def predict(monkeypatch):
    """Replace the network with a function of (params, x)."""
    return lambda function: monkeypatch.setattr(corruption, "predict_x0", function)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the script on digits; return its folder and what it prints."""
    folder = tmp_path_factory.mktemp("corruption")
    printed = io.StringIO()
    options = f"--data digits --batch-size {BATCH_SIZE} --max-steps {STEPS} --out {folder}"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(corruption, "Digits", FewDigits)
        corruption.main(options.split())
    return folder, printed.getvalue()


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        corruption.main(["--data", "digits", "--max-steps", "1", "--out", str(tmp_path / "file")])


def test_the_network_has_309057_parameters():
    assert corruption.MODEL.parameter_count() == 309_057


def test_corrupt_returns_x0_at_amount_0_and_noise_at_amount_1():
    amounts = jnp.linspace(0, 1, 8)[:, None, None, None]
    corrupted = corruption.corrupt(X0, amounts, NOISE)
    np.testing.assert_array_equal(corrupted[0], X0[0])
    np.testing.assert_array_equal(corrupted[-1], NOISE[-1])
    expected = X0 + amounts * (NOISE - X0)
    np.testing.assert_allclose(corrupted, expected, atol=1e-6)


def test_loss_is_the_squared_error_of_the_prediction(predict):
    predict(lambda params, x: params)
    loss = jax.jit(corruption.loss)
    assert loss(X0, KEYS, BATCH).shape == (8,)
    np.testing.assert_allclose(loss(X0, KEYS, BATCH), 0, atol=1e-12)
    np.testing.assert_allclose(loss(X0 + 0.1, KEYS, BATCH), 0.01, rtol=1e-4)


def test_amounts_and_noise_are_uniform(predict):
    """With the identity as the network the loss has a closed form."""
    predict(lambda params, x: x)
    c = 0.2
    keys = jax.random.split(jax.random.key(3), 2048)
    batch = {"image": jnp.full((2048, *SHAPE), 2 * c - 1)}
    loss = np.asarray(jax.jit(corruption.loss)({}, keys, batch), float)
    # E amount^2 E (noise - c)^2 = 1/3 (1/12 + (1/2 - c)^2)
    expected = (1 / 12 + (1 / 2 - c) ** 2) / 3
    assert abs(loss.mean() - expected) < 5 * loss.std() / np.sqrt(2048)


def test_loss_of_an_example_depends_on_its_own_key_and_image_only(predict):
    predict(lambda params, x: 0.5 * x)
    loss = jax.jit(corruption.loss)
    losses = loss({}, KEYS, BATCH)
    reversed_batch = {"image": BATCH["image"][::-1]}
    assert len(set(losses.tolist())) == 8
    np.testing.assert_array_equal(loss({}, KEYS[::-1], reversed_batch), losses[::-1])


@pytest.mark.parametrize("steps", [1, 5])
def test_a_perfect_prediction_is_reached_in_equal_steps(steps, predict):
    predict(lambda params, x: X0)
    states, predictions = corruption.sample({}, NOISE, steps)
    assert len(states) == steps + 1
    assert len(predictions) == steps
    for i, state in enumerate(states):
        mix = i / steps
        np.testing.assert_allclose(state, (1 - mix) * NOISE + mix * X0, atol=1e-6)
    np.testing.assert_array_equal(states[-1], X0)


def test_each_state_mixes_in_its_prediction_and_the_last_prediction_is_the_sample(predict):
    predict(lambda params, x: x**2)
    states, predictions = corruption.sample({}, NOISE, 5)
    x = np.asarray(NOISE, float)
    for i in range(5):
        np.testing.assert_allclose(states[i], x, atol=1e-6)
        np.testing.assert_allclose(predictions[i], x**2, atol=1e-6)
        x = x + (x**2 - x) / (5 - i)
    np.testing.assert_array_equal(states[-1], predictions[-1])


def test_the_loss_falls(run):
    losses = np.loadtxt(run[0] / "losses.csv")
    assert losses.shape == (STEPS,)
    assert losses[-3:].mean() < 0.7 * losses[0]


def test_the_mean_loss_of_each_epoch_is_printed(run):
    folder, printed = run
    losses = np.loadtxt(folder / "losses.csv")
    means = [float(mean) for mean in re.findall(r"mean loss (\S+)", printed)]
    expected = [losses[:EPOCH_STEPS].mean(), losses[EPOCH_STEPS:].mean()]
    np.testing.assert_allclose(means, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "rows"), [("reconstructions", 3), ("sampling", 5)])
def test_a_figure_has_its_rows(name, rows, run):
    """Count the bands of pixel rows that are not white, right of the labels."""
    with Image.open(run[0] / f"{name}.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    band = (pixels[:, pixels.shape[1] // 2 :] < 250).any(axis=1)
    assert np.count_nonzero(np.diff(band, prepend=False) & band) == rows
