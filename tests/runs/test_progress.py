"""Report the loss of each logged step, epoch means and sample grids."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from helpers.nets import SMALLEST
from helpers.saved_runs import random_params, small_recipe
from PIL import Image

from ddpm_jax.config import Log, Training
from ddpm_jax.data.arrays import Arrays
from ddpm_jax.data.conditions import with_condition
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.pixels import to_uint8
from ddpm_jax.diffusion.objective import Objective
from ddpm_jax.generation.sampling import Sampling
from ddpm_jax.runs import grids, progress, tasks
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.training.optimizer import Optimizer
from ddpm_jax.training.step import TrainState

CONFIG = small_recipe(
    training=Training(batch_size=4, steps=7),
    optimizer=Optimizer(learning_rate=0.5, warmup_steps=10),
    log=Log(every=2, samples=0),
)
# 12 images in batches of 4 are 3 steps an epoch.
IMAGES = InMemory(np.random.RandomState(0).randint(0, 256, (12, 8, 8, 1)).astype(np.uint8))


def state(config):
    params = {"nothing": jnp.zeros(1)}
    return TrainState(jnp.zeros((), jnp.int32), params, {"ema": params}, ())


def report(config, workdir, steps, start=0):
    with progress.Reporter(config, IMAGES, workdir, start) as reporter:
        for step in steps:
            metrics = {"loss": jnp.float32(step / 8), "grad_norm": jnp.float32(1)}
            # Band 0 has one example a step, the last band one in step 3.
            sums = np.zeros((2, 8), np.float32)
            sums[:, 0] = step / 4, 1
            sums[:, 7] = (5, 1) if step == 3 else 0
            reporter.after_step(step, metrics | {"loss_bands": jnp.asarray(sums)})
            reporter.draw(step, state(config))


def test_each_line_holds_the_values_of_its_own_step(tmp_path):
    report(CONFIG, tmp_path, range(1, 8))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    assert all(line["loss"] == line["step"] / 8 for line in lines)
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.15, 0.25, 0.3], rtol=1e-6)


def test_a_skipped_update_does_not_advance_the_logged_learning_rate(tmp_path):
    config = dataclasses.replace(CONFIG, log=Log(every=1, samples=0))
    with progress.Reporter(config, IMAGES, tmp_path, 0) as reporter:
        for step, norm in enumerate((1.0, np.nan, 1.0, 1.0), 1):
            reporter.after_step(step, {"loss": jnp.float32(1), "grad_norm": jnp.float32(norm)})
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(rates[2:], [0.05, 0.1], rtol=1e-6)


def test_each_line_holds_the_mean_losses_by_band_since_the_last_line(tmp_path):
    report(CONFIG, tmp_path, range(1, 8))
    bands = [line["loss_bands"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert [band[0] for band in bands] == [1.5 / 4, 3 / 4, 1, 5.5 / 4, 7 / 4]
    assert [band[7] for band in bands] == [None, 5, None, None, None]
    assert bands[0][1:7] == [None] * 6


def test_an_epoch_line_holds_the_mean_of_its_steps(tmp_path, capsys):
    report(CONFIG, tmp_path, range(1, 8))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    epochs = {line["epoch"]: line["epoch_loss"] for line in lines if "epoch" in line}
    assert epochs == {1: 2 / 8, 2: 5 / 8}
    assert "epoch 2/3: mean loss 0.62500" in capsys.readouterr().out


def test_epochs_shorter_than_the_log_interval_share_a_line(tmp_path, capsys):
    """An epoch has three steps, and the log an interval of five."""
    config = dataclasses.replace(CONFIG, log=Log(every=5, samples=0))
    report(
        dataclasses.replace(config, training=Training(batch_size=4, steps=8)), tmp_path, range(1, 9)
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert {line["epoch"]: line["epoch_loss"] for line in lines if "epoch" in line} == {2: 3.5 / 8}
    printed = capsys.readouterr().out
    assert "epoch 2/3: mean loss of 6 steps 0.43750" in printed
    assert "epoch 3/3: mean loss of 2 steps" in printed
    assert "epoch 1/3" not in printed


def test_a_resumed_run_continues_its_metrics_and_draws_the_loss_curve(tmp_path):
    report(CONFIG, tmp_path, range(1, 5))
    report(CONFIG, tmp_path, range(5, 8), start=4)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3, 4, 6, 7]
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > picture.height


def test_skip_final_plot_leaves_the_loss_curve_to_the_resumed_run(tmp_path):
    with progress.Reporter(CONFIG, IMAGES, tmp_path, 0) as reporter:
        reporter.after_step(1, {"loss": jnp.float32(1), "grad_norm": jnp.float32(1)})
        reporter.skip_final_plot = True
    assert not (tmp_path / "loss.png").exists()
    report(CONFIG, tmp_path, range(2, 4), start=1)
    assert (tmp_path / "loss.png").exists()


def test_grids_are_drawn_at_their_cadence_and_at_the_end(tmp_path, monkeypatch):
    drawn = []

    def record(self, step, params):
        drawn.append(step)

    monkeypatch.setattr(progress.Reporter, "_draw_grid", record)
    log = Log(every=2, samples=4, samples_every_epochs=1)
    report(dataclasses.replace(CONFIG, log=log), tmp_path, range(1, 8))
    assert drawn == [3, 6, 7]
    drawn.clear()
    # An epoch has three steps. Grids are as far apart as log records.
    log = dataclasses.replace(log, every=4)
    report(dataclasses.replace(CONFIG, log=log), tmp_path, range(1, 8))
    assert drawn == [6, 7]


def test_predictions_are_drawn_if_the_grid_cannot_be_written(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no room")

    task = tasks.task_of(CONFIG)._replace(
        grid=lambda *_: IMAGES.images[:4],
        predictions=lambda *_: [("input", IMAGES.images[:4])],
    )
    monkeypatch.setitem(tasks.TASKS, type(CONFIG), task)
    monkeypatch.setattr(progress.image_grids, "save_images", fail)
    config = dataclasses.replace(CONFIG, log=Log(every=2, samples=4))
    report(config, tmp_path, range(7, 8))
    assert (
        "Could not write a grid of samples, training continues: no room" in capsys.readouterr().err
    )
    assert (tmp_path / "samples" / "00000007_predictions.png").exists()


def test_a_grid_that_cannot_be_drawn_does_not_end_training(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise FloatingPointError("The samples\nare not finite.")

    task = tasks.task_of(CONFIG)._replace(grid=fail)
    monkeypatch.setitem(tasks.TASKS, type(CONFIG), task)
    config = dataclasses.replace(CONFIG, log=Log(every=2, samples=4, samples_every=2))
    report(config, tmp_path, range(1, 4))
    warning = "The samples of step 2 were not drawn (The samples are not finite.)."
    assert warning in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3]


def test_previews_and_prediction_rows_run_from_clean_images_to_noise(tmp_path):
    grids.preview_noising(CONFIG, IMAGES, tmp_path)
    for name in ("data.png", "noise.png"):
        with Image.open(tmp_path / "preview" / name) as picture:
            assert min(picture.size) > 48
    rows = dict(grids.prediction_rows(CONFIG, random_params(CONFIG.model), IMAGES))
    assert list(rows) == ["input", "noisy", "prediction"]
    error = np.abs(rows["noisy"].astype(int) - rows["input"]).mean((1, 2, 3))
    assert error[0] < 3
    assert error[-1] > 40
    np.testing.assert_array_equal(rows["input"], IMAGES.images[:8])


def test_sample_steps_limits_the_steps_of_a_grid(monkeypatch):
    samplings = []

    def record(*_, sampling, **__):
        samplings.append(sampling)
        return IMAGES.images[None]

    monkeypatch.setattr(grids, "generate", record)
    objective = Objective(timesteps=10, beta_start=0.1, beta_end=0.8)
    log = Log(samples=4, sample_steps=3)
    for sampling, expected in (
        (Sampling(), Sampling(steps=3)),
        (Sampling(steps=2), Sampling(steps=2)),
        (Sampling(timesteps=(9.0, 7.0, 5.0, 1.0)), Sampling(steps=3)),
        (Sampling(timesteps=(9.0, 5.0)), Sampling(timesteps=(9.0, 5.0))),
    ):
        config = dataclasses.replace(CONFIG, objective=objective, sampling=sampling, log=log)
        grids.samples(config, {}, IMAGES)
        assert samplings[-1] == expected, sampling


def test_prediction_rows_have_the_labels_of_their_images(monkeypatch):
    labels = np.int32([5, 3, 1, 5, 2, 0, 4, 4, 1, 1, 1, 1])
    conditions = []
    monkeypatch.setattr(grids, "guided_network", lambda *given: conditions.append(given[2]))
    monkeypatch.setattr(grids, "_predict", lambda objective, network, xt, t: xt)
    model = dataclasses.replace(SMALLEST, num_classes=6)
    config = dataclasses.replace(CONFIG, model=model)
    grids.prediction_rows(config, {}, InMemory(IMAGES.images, labels))
    np.testing.assert_array_equal(conditions[0], labels[:8])


def test_grids_show_the_chosen_channels_of_condition_images(monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 256, (12, 4, 4, 2)).astype(np.uint8)
    monkeypatch.setattr(grids, "generate", lambda *_, **__: pixels[:2][None])
    data = Arrays(path="x.npz", condition="reduced", reduction=2)
    model = dataclasses.replace(SMALLEST, channels=2, condition_channels=2)
    config = small_recipe(model=model, data=data, log=Log(samples=6, channels=(1,)))
    images = with_condition(data, InMemory(pixels))
    rows = grids.samples(config, {}, images)
    given = to_uint8(images.read(np.arange(2))["condition_image"])
    np.testing.assert_array_equal(rows[:, :, :4], given[..., 1:].repeat(3, -1))
    np.testing.assert_array_equal(rows[:, :, 8:], pixels[:2, ..., 1:].repeat(3, -1))
