"""`python -m ddpm_jax.evaluate` on a tiny run: its figures, the files it leaves, mistakes in one line.

Every bound is measured over 12 images in batches of 8 and in 4 parts of 2 timesteps, so that all
tests share a compiled program for each network and variance.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.cli import arguments
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.likelihood import VariationalBound
from ddpm_jax.diffusion.likelihood import bits_per_dim as whole_bound
from ddpm_jax.evaluation import bits_per_dim
from ddpm_jax.generation.generate import guided_network
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.generation.walk import sampling_denoiser
from ddpm_jax.models import Model
from ddpm_jax.samplers import sample_keys

NUM, BATCH, SEED = 12, 8, 3
LENGTH = ("--num", NUM, "--batch-size", BATCH, "--seed", SEED)


def measure(run, *args) -> dict:
    """The figures that the command leaves in the run's folder."""
    with arguments.one_line_errors(False):
        evaluate.main([str(arg) for arg in ("--ckpt", run, *args, "--no-compilation-cache")])
    return json.loads((run / "bits_per_dim.json").read_text())


def measured(config, params, batch, variance=None) -> VariationalBound:
    """The bound of the images of a batch, by batches and parts."""
    return bits_per_dim.evaluate(config, params, batch, BATCH, SEED, variance)


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    for module in (bits_per_dim, evaluate):
        monkeypatch.setattr(module, "PROGRESS_PARTS", 4)


@pytest.fixture(scope="module")
def batch(config):
    """The first images of the seed and their labels, read from the data by hand."""
    images = config.data.load(config.model.image_size, config.model.channels)
    rows = np.random.RandomState([SEED, 0]).permutation(len(images))[:NUM]
    found = images.read(rows)
    return found | {"image": found["image"].astype(np.float32) / 127.5 - 1}


@pytest.fixture(scope="module")
def average(params):
    """The average that the run has saved."""
    return jax.tree.map(lambda x: 2 * x, params)


def test_the_figures_are_those_of_the_first_images_of_the_seed(
    run,
    config,
    average,
    batch,
    capsys,
):
    found, printed = measure(run, *LENGTH), capsys.readouterr()
    assert (found["num"], found["seed"], found["step"], found["weights"]) == (NUM, SEED, 5, "ema")
    with Image.open(run / "bits_per_dim.png") as picture:
        assert picture.size[0] > 400
    assert "bits_per_dim.png" in printed.out
    figure = f"{found['bits_per_dim']:.4f} +- {found['standard_error']:.4f}"
    assert f"at most {figure} (12 images" in printed.out
    np.testing.assert_allclose(
        found["bits_per_dim"], found["prior"] + found["steps"] + found["decoder"], rtol=1e-5
    )
    np.testing.assert_allclose(np.sum(found["per_timestep"][1:]), found["steps"], rtol=1e-5)
    np.testing.assert_allclose(found["per_timestep"][0], found["decoder"], rtol=1e-5)

    bound = measured(config, average, batch)
    total = np.asarray(bound.total)
    np.testing.assert_allclose(found["bits_per_dim"], total.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["standard_error"], total.std(ddof=1) / np.sqrt(NUM), rtol=1e-3)
    np.testing.assert_allclose(found["per_timestep"], np.mean(bound.terms, 0), rtol=1e-3, atol=1e-6)


def test_the_weights_and_the_variance_are_those_asked_for(run, config, params, average, batch):
    found = measure(run, *LENGTH, "--weights", "raw", "--variance", "fixed_large")
    assert (found["weights"], found["variance"]) == ("raw", "fixed_large")
    wanted = float(np.mean(measured(config, params, batch, "fixed_large").total))
    others = [measured(config, average, batch, "fixed_large"), measured(config, params, batch)]
    np.testing.assert_allclose(found["bits_per_dim"], wanted, rtol=1e-6)
    assert all(abs(float(np.mean(other.total)) - wanted) > 1e-3 for other in others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine(Model):
    """A network of four numbers, whose bound is quickly compiled."""

    def apply(self, params, xt, t, condition=None, **options):
        a, b, c, d = params["numbers"]
        shift = b * jnp.sin(condition.astype(jnp.float32)) + c * t.astype(jnp.float32)
        output = a * xt + shift[:, None, None, None]
        return jnp.concatenate([output, d * xt], -1) if self.learned_variance else output


AFFINE = Affine(image_size=4, channels=1, num_classes=10)
NUMBERS = {"numbers": jnp.array([0.7, 0.2, 0.05, 0.4])}


def test_a_bound_by_batches_and_parts_is_the_whole_bound(config, batch):
    config = dataclasses.replace(config, model=AFFINE)
    bound = measured(config, NUMBERS, batch)
    network = guided_network(AFFINE, NUMBERS, jnp.asarray(batch["label"]))
    denoise = sampling_denoiser(config.objective, network, Sampling())
    keys = sample_keys(SEED, jnp.arange(NUM))
    whole = whole_bound(keys, config.objective.noise_schedule, denoise, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(bound.total, whole.total, rtol=1e-4)
    np.testing.assert_allclose(bound.terms, whole.terms, rtol=1e-3, atol=1e-6)


def test_a_learned_variance_is_used(config, batch):
    model = dataclasses.replace(AFFINE, learned_variance=True)
    objective = dataclasses.replace(config.objective, loss_kind="hybrid", variance="learned_range")
    learned = dataclasses.replace(config, model=model, objective=objective)
    own, said, small = (
        np.asarray(measured(learned, NUMBERS, batch, variance).total)
        for variance in (None, "learned_range", "fixed_small")
    )
    np.testing.assert_array_equal(own, said)
    assert abs(own.mean() - small.mean()) > 1e-3


def test_another_part_of_the_data_may_be_asked_for(config):
    assert evaluate.with_split(config, None) is config
    with pytest.raises(ValueError, match="has no parts: leave --split out"):
        evaluate.with_split(config, "test")
    tfds = dataclasses.replace(config, data=Tfds(name="mnist"))
    assert evaluate.with_split(tfds, "test").data == Tfds(name="mnist", split="test")


def test_more_images_than_there_are_end_in_one_line(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        measure(run, "--num", 5000)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message == "error: --num 5000 is more than the 1,797 images there are\n"


def test_a_standard_error_needs_two_images():
    with pytest.raises(ValueError, match="--num must be at least 2, for a standard error, not 1"):
        evaluate.EvaluateOptions(num=1)


def test_a_bound_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the bound is not finite: look for NaN in the weights"):
        bits_per_dim.summary(VariationalBound(jnp.full((2, 3), jnp.nan), jnp.zeros(2)))
