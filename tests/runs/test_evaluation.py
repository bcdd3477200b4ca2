"""Compare samples with training images while a network is trained, and keep the best step."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nets import SMALLEST
from helpers.saved_runs import RECIPE, random_params

from ddpm_jax.config import Checkpoint, Evaluation, Log, Training
from ddpm_jax.data.batches import batch_at
from ddpm_jax.data.conditions import with_condition
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.loading import InMemory
from ddpm_jax.evaluation.kid import kernel_distance
from ddpm_jax.generation.generate import generate
from ddpm_jax.runs import evaluation, loop, metrics, saved_steps
from ddpm_jax.runs.evaluation import Evaluator
from ddpm_jax.runs.grids import shortened
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.tasks import task_of
from ddpm_jax.training.ema import Ema
from ddpm_jax.training.step import TrainState

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("without_kernels")]

IMAGES = InMemory(np.random.RandomState(0).randint(0, 60, (40, 8, 8, 1)).astype(np.uint8))
CONFIG = dataclasses.replace(
    RECIPE,
    training=Training(batch_size=16, steps=7),
    ema=Ema(decay=0.9),
    evaluation=Evaluation(every=2, num=40),
    checkpoint=Checkpoint(every=5, keep_last=1),
    log=Log(every=3, samples=0, sample_steps=2),
)


def test_samples_of_the_runs_seed_are_compared_with_its_images():
    params = random_params(CONFIG.model)
    result = Evaluator(CONFIG, IMAGES)(params)
    states = generate(
        CONFIG, params, num_images=40, batch_size=16, seed=0, sampling=shortened(CONFIG)
    )
    # All 40 images are the reference. Pixels are in [0, 1], and KID takes them in any order.
    vectors, reference = (
        (images / np.float32(255)).reshape(40, -1)
        for images in (states[-1], IMAGES.read(np.arange(40))["image"])
    )
    assert result.kid == pytest.approx(kernel_distance(vectors, reference).value, rel=1e-5)
    assert result.kid > 0.1
    assert result.frechet > 1


def test_samples_have_the_conditions_of_other_images_if_there_are_enough(monkeypatch):
    levels = np.arange(24, dtype=np.uint8).repeat(64).reshape(24, 8, 8, 1)
    images = with_condition(Digits(condition="brightness"), InMemory(levels))
    given = []

    def drawn(*_, conditions, **__):
        given.append(conditions["vector"])
        return levels[None]

    monkeypatch.setattr(evaluation, "generate", drawn)
    model = dataclasses.replace(SMALLEST, image_size=8, vector_size=1)
    for num, others in ((8, True), (20, False)):
        config = dataclasses.replace(
            CONFIG,
            model=model,
            data=Digits(condition="brightness"),
            evaluation=Evaluation(every=2, num=num),
        )
        evaluator = Evaluator(config, images)
        result = evaluator({})
        reference = batch_at(images, config.training.seed, 0, num)["vector"]
        assert np.isin(given[-1], reference).any() != others
        named = evaluator.record(result)["made_with"]["conditions"]
        assert named == f"those of {'other images' if others else 'reference images too'}"


def test_measured_steps_are_saved_and_logged_and_the_best_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "loss_curve", lambda *_, **__: None)
    kids = {2: 0.3, 4: 0.2, 6: None, 7: 0.4}
    remaining = iter(kids.values())

    def measure(evaluator, params):
        kid = next(remaining)
        if kid is None:
            raise ValueError("Out of memory.")
        return evaluation.Distances(kid, 0.01, 1.0)

    monkeypatch.setattr(Evaluator, "__call__", measure)

    def train_step(state, batch):
        metrics = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)}
        return state._replace(step=state.step + 1), metrics

    params = {"w": jnp.zeros(1)}
    state = TrainState(jnp.int32(0), params, {"ema": params}, {"n": jnp.zeros(1)})
    evaluator = Evaluator(CONFIG, IMAGES)
    end = loop.run_steps(CONFIG, tmp_path, IMAGES, train_step, state, evaluator=evaluator)
    assert end == (7, 0)
    assert saved_steps.steps(tmp_path) == [4, 7]
    assert saved_steps.resolve_checkpoint(tmp_path, "best") == (tmp_path, 4)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    measured = {line["step"]: line["kid"] for line in lines if "kid" in line}
    assert measured == {step: kid for step, kid in kids.items() if kid is not None}
    record = saved_steps.data_at(tmp_path, 4)["evaluation"]
    assert (record["made_with"]["num"], record["made_with"]["images"]) == (40, 40)
    assert sorted(line["step"] for line in lines if "loss" in line) == [3, 6, 7]
    printed = capsys.readouterr()
    assert "step 4: KID 0.20000 +- 0.01000" in printed.out
    assert "Step 6 was not measured (Out of memory.)." in printed.err


def test_unknown_features_are_found_before_the_first_step():
    config = dataclasses.replace(CONFIG, evaluation=Evaluation(every=2, features="faces"))
    with pytest.raises(ValueError, match="Unknown features 'faces': choose one of classifier"):
        task_of(config).check(config)


@pytest.mark.parametrize(
    ("features", "count", "message"),
    [("classifier", 40, "labels, which some of the images lack"), ("pixels", 3, "not 3: give")],
)
def test_features_and_images_that_are_missing_are_found_before_training(features, count, message):
    config = dataclasses.replace(CONFIG, evaluation=Evaluation(every=2, features=features))
    images = InMemory(IMAGES.images[:count])
    with pytest.raises(ValueError, match=message):
        evaluation.prepared_evaluator(config, images)
    unmeasured = dataclasses.replace(CONFIG, evaluation=Evaluation(features=features))
    assert evaluation.prepared_evaluator(unmeasured, images) is None
