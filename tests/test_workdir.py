"""What may go on in a directory, what is thrown away, and which parameters come out of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ddpm_jax import workdir
from ddpm_jax.checkpoint import Checkpoints
from ddpm_jax.config import Checkpoint, Config, Optimizer, Training, to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.models.basic_unet import BasicUNet

CONFIG = Config(
    model=BasicUNet(image_size=8, channels=1), data=Digits(), training=Training(batch_size=8, steps=5, cpu_devices=3)
)


@pytest.fixture(scope="module")
def params():
    return CONFIG.model.init(jax.random.key(0))


@pytest.fixture
def run(tmp_path, params):
    """A directory with one checkpoint, of step 5, whose average is twice the parameters."""
    twice = jax.tree.map(lambda x: 2 * x, params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            5, {"params": params, "ema_params": {"ema": twice}, "opt_state": {"count": np.zeros(1)}}, to_json(CONFIG)
        )
    return tmp_path


def test_an_empty_directory_starts_at_zero(tmp_path):
    assert workdir.resume(CONFIG, tmp_path / "new") == (CONFIG, 0)


def test_the_same_recipe_goes_on_with_as_many_devices(run):
    longer = Training(batch_size=8, steps=50)
    config, step = workdir.resume(dataclasses.replace(CONFIG, training=longer, checkpoint=Checkpoint(every=2)), run)
    assert step == 5
    assert config.training == dataclasses.replace(longer, cpu_devices=3)
    assert config.checkpoint.every == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": Optimizer(learning_rate=1.0)}, "optimizer.learning_rate"),
        ({"model": BasicUNet(image_size=16, channels=1)}, "model.image_size"),
        ({"data": Digits(flip=True)}, "data.flip"),
        ({"training": Training(batch_size=16, steps=5)}, "training.batch_size"),
    ],
)
def test_what_changes_the_run_is_refused_by_name(run, change, named):
    with pytest.raises(ValueError, match=named):
        workdir.resume(dataclasses.replace(CONFIG, **change), run)


def test_a_config_that_cannot_be_read_is_named(run):
    workdir.checkpoint.config_file(run, 5).write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read .*--overwrite"):
        workdir.resume(CONFIG, run)


@pytest.mark.parametrize(("weights", "factor"), [("raw", 1), ("ema", 2)])
def test_parameters_come_back_by_name(run, params, weights, factor):
    loaded = workdir.load_params(CONFIG, run, 5, weights)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, factor * np.asarray(b)), loaded, params)


def test_another_models_checkpoint_is_an_error_that_names_a_leaf(run):
    other = dataclasses.replace(CONFIG, model=BasicUNet(image_size=8, channels=3))
    with pytest.raises(ValueError, match=r"another model's params .*down_0/kernel is \(5, 5, 1, 32\) there"):
        workdir.load_params(other, run, 5, "raw")


def test_a_run_without_a_checkpoint_yet_is_recognised(tmp_path):
    workdir.write_config(tmp_path, CONFIG)
    assert workdir.resume(CONFIG, tmp_path) == (CONFIG, 0)
    with pytest.raises(ValueError, match=r"data\.flip"):
        workdir.resume(dataclasses.replace(CONFIG, data=Digits(flip=True)), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        workdir.resume(CONFIG, tmp_path / "config.json")


def test_clear_removes_a_run_and_nothing_else(run):
    (run / "mine").mkdir()
    (run / "metrics-1.jsonl").write_text("")
    workdir.write_config(run, CONFIG)
    assert json.loads((run / "config.json").read_text()) == json.loads(json.dumps(to_json(CONFIG)))
    workdir.clear(run)
    assert [path.name for path in run.iterdir()] == ["mine"]
