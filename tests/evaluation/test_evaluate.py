"""`python -m ddpm_jax.evaluate` on a tiny run: figures that add up, files beside the run, mistakes in one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ddpm_jax.corruption import Corruption
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.cli import arguments
from ddpm_jax.config import Config, Training, to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.tfds import Tfds
from ddpm_jax.diffusion.likelihood import Bound, bits_per_dim
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.evaluation import bits_per_dim
from ddpm_jax.generation.generate import network_of
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.models.basic_unet import BasicUNet
from ddpm_jax.models.unet import UNet
from ddpm_jax.runs import weights
from ddpm_jax.runs.checkpoints import Checkpoints
from ddpm_jax.samplers import sample_keys

pytestmark = pytest.mark.usefixtures("optimized")
MODEL = UNet(image_size=4, channels=1, widths=(8,), attention=(False,), layers_per_level=1, groups=4, num_classes=10)
CONFIG = Config(
    model=MODEL, data=Digits(), training=Training(steps=5), objective=Objective(schedule="squaredcos", timesteps=40)
)


def some_params(model):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), model.init(jax.random.key(0)))


def save(folder, config):
    params = some_params(config.model)
    twice = jax.tree.map(lambda x: 2 * x, params)
    with Checkpoints(folder) as checkpoints:
        parts = {"params": params, "ema_params": {"ema": twice}, "opt_state": {"count": np.zeros(1)}}
        checkpoints.save(5, parts, to_json(config))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), CONFIG)


def measure(*args):
    with arguments.one_line_errors(False):
        evaluate.main([str(arg) for arg in (*args, "--no-compilation-cache")])


def one_line(capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        measure(*args)
    assert exit_.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_the_figures_are_those_of_the_bound_over_the_first_images_of_the_seed(run, capsys):
    measure("--ckpt", run, "--num", 20, "--batch-size", 9, "--seed", 3)
    printed, found = capsys.readouterr(), json.loads((run / "bits_per_dim.json").read_text())
    assert (found["num"], found["seed"], found["step"], found["weights"]) == (20, 3, 5, "ema")
    with Image.open(run / "bits_per_dim.png") as picture:
        assert picture.size[0] > 400
    assert "bits_per_dim.png" in printed.out
    assert f"at most {found['bits_per_dim']:.4f} +- {found['standard_error']:.4f} (20 images" in printed.out
    np.testing.assert_allclose(found["bits_per_dim"], found["prior"] + found["steps"] + found["decoder"], rtol=1e-5)
    np.testing.assert_allclose(np.sum(found["per_timestep"][1:]), found["steps"], rtol=1e-5)
    np.testing.assert_allclose(found["per_timestep"][0], found["decoder"], rtol=1e-5)

    images = CONFIG.data.load(4, 1)
    rows = np.random.RandomState([3, 0]).permutation(len(images))[:20]
    batch = images.read(rows)
    x0 = jnp.asarray(batch["image"].astype(np.float32) / 127.5 - 1)
    params = weights.load_params(CONFIG, run, 5, "ema")
    network = network_of(MODEL, params, jnp.asarray(batch["label"]))
    denoise = CONFIG.objective.denoiser(network, Sampling())
    bound = bits_per_dim(sample_keys(3, jnp.arange(20)), CONFIG.objective.noise_schedule(), denoise, x0)
    total = np.asarray(bound.total)
    np.testing.assert_allclose(found["bits_per_dim"], total.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["standard_error"], total.std(ddof=1) / np.sqrt(20), rtol=1e-3)
    np.testing.assert_allclose(found["per_timestep"], np.mean(bound.terms, 0), rtol=1e-3, atol=1e-6)


def test_the_weights_are_those_asked_for(run):
    found = []
    for weights in ("ema", "raw"):
        measure("--ckpt", run, "--num", 8, "--weights", weights)
        found.append(json.loads((run / "bits_per_dim.json").read_text())["bits_per_dim"])
    assert found[0] != found[1]


def test_a_learned_variance_is_used(tmp_path):
    model = dataclasses.replace(MODEL, learned_variance=True)
    objective = Objective(schedule="squaredcos", timesteps=40, bound="hybrid", variance="learned_range")
    config = dataclasses.replace(CONFIG, model=model, objective=objective)
    measure("--ckpt", save(tmp_path, config), "--num", 8)
    learned = json.loads((tmp_path / "bits_per_dim.json").read_text())
    params, batch = some_params(model), evaluate.draw_images(config, evaluate.Evaluation(num=8))
    params = jax.tree.map(lambda x: 2 * x, params)
    whole = bits_per_dim.evaluate(config, params, batch, 8, 0)
    np.testing.assert_allclose(np.mean(whole.total), learned["bits_per_dim"], rtol=1e-4)
    object.__setattr__(objective, "variance", "fixed_small")
    assert abs(np.mean(bits_per_dim.evaluate(config, params, batch, 8, 0).total) - learned["bits_per_dim"]) > 1e-3


def test_another_variance_and_split_may_be_asked_for(run, capsys):
    found = []
    for variance in ("fixed_small", "fixed_large"):
        measure("--ckpt", run, "--num", 4, "--variance", variance)
        found.append(json.loads((run / "bits_per_dim.json").read_text()))
        assert found[-1]["variance"] == variance
    assert found[0]["bits_per_dim"] != found[1]["bits_per_dim"]
    assert "has no parts: leave --split out" in one_line(capsys, "--ckpt", run, "--split", "test")
    tfds = dataclasses.replace(CONFIG, data=Tfds(name="mnist"))
    assert evaluate.with_split(tfds, "test").data == Tfds(name="mnist", split="test")


def test_mistakes_are_one_line(run, tmp_path, capsys):
    assert "--ckpt is missing" in one_line(capsys)
    assert "does not exist" in one_line(capsys, "--ckpt", tmp_path / "nothing")
    assert "--num 5000 is more than the 1,797 images there are" in one_line(capsys, "--ckpt", run, "--num", 5000)
    toy = Config(
        model=BasicUNet(image_size=8, channels=1), data=Digits(), training=Training(steps=5), objective=Corruption()
    )
    assert "this run trained the corruption toy" in one_line(capsys, "--ckpt", save(tmp_path, toy))


def test_a_bound_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the bound is not finite: look for NaN in the weights"):
        bits_per_dim.summary(Bound(jnp.full((2, 3), jnp.nan), jnp.zeros(2)))
