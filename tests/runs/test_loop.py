"""Run the training loop: each host's rows, saves, callbacks and rollbacks."""

import dataclasses
import itertools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.commands import arrays
from helpers.saved_runs import RECIPE, save_run, small_recipe
from PIL import Image

from ddpm_jax.config import Checkpoint, Log, Training
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.loading import InMemory
from ddpm_jax.data.scaled_images import ScaledImages
from ddpm_jax.data.values import scaled_values
from ddpm_jax.models.unet import UNet
from ddpm_jax.runs import checkpoints, loop, manifest, progress, saved_steps
from ddpm_jax.runs.metrics import read_metrics
from ddpm_jax.runs.progress import Reporter
from ddpm_jax.training import step as training
from ddpm_jax.training.optimizer import Optimizer, learning_rate
from ddpm_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("without_curves")

PIXELS = np.arange(40 * 64, dtype=np.uint32).astype(np.uint8).reshape(40, 8, 8, 1)
CLASSES = tuple("abcdefghij")
IMAGES = InMemory(PIXELS, np.arange(40, dtype=np.int32) % 10, CLASSES)
CONFIG = dataclasses.replace(
    RECIPE,
    training=dataclasses.replace(
        RECIPE.training, steps=16, skip_patience=3, on_patience="rollback"
    ),
    checkpoint=Checkpoint(every=3),
    log=Log(every=1, samples=0),
)


@pytest.fixture(scope="module")
def compiled():
    """The optimizer and the training step of CONFIG, compiled once for all tests."""
    tx = CONFIG.make_optimizer(len(IMAGES))
    return tx, loop.parallel_train_step(CONFIG, tx)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_rows_of_all_hosts_make_the_global_batch(monkeypatch):
    """In each micro-batch the rows of the hosts follow each other, and so do their keys."""
    (expected,) = loop.batches(CONFIG, IMAGES, 3, 4)
    expected["key"] = jax.random.key_data(expected["key"])
    for num_hosts in (1, 2, 4):
        monkeypatch.setattr(jax, "process_count", lambda num_hosts=num_hosts: num_hosts)
        hosts = []
        for host in range(num_hosts):
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            (batch,) = loop.batches(CONFIG, IMAGES, 3, 4)
            batch["key"] = jax.random.key_data(batch["key"])
            batch = {name: np.asarray(rows) for name, rows in batch.items()}
            hosts.append(list(training.micro_batches(batch, CONFIG.training.accumulation)))
        # One tuple per micro-batch, with the rows of every host.
        micro_batches = list(zip(*hosts, strict=True))
        for name, rows in expected.items():
            actual = [part[name] for parts in micro_batches for part in parts]
            case = f"{name}, {num_hosts} hosts"
            np.testing.assert_array_equal(np.concatenate(actual), rows, err_msg=case)


def test_a_resumed_state_equals_the_saved_one(compiled, tmp_path, capsys):
    tx, train_step = compiled
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=2))
    saved = []

    def on_save(step, state):
        saved.append(jax.tree.map(np.asarray, state))

    state = loop.first_state(config, tx)
    assert loop.run_steps(config, tmp_path, IMAGES, train_step, state, on_save) == (2, 0)
    resumed = loop.resumed_state(config, tx, tmp_path, 2)
    assert_same(resumed, saved[0])
    for leaf in jax.tree.leaves(resumed):
        assert leaf.sharding.device_set == set(jax.devices())
    capsys.readouterr()
    loop.check_data(tmp_path, 2, IMAGES)
    assert capsys.readouterr().err == ""
    loop.check_data(tmp_path, 2, InMemory(np.repeat(PIXELS, 2, 0), classes=CLASSES))
    assert "had 40 images so far and has 80 now" in capsys.readouterr().err
    values = scaled_values("range", [(0.0, 1.0)], np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"trained network \(levels 0 to 255\): restore it"):
        loop.check_data(tmp_path, 2, ScaledImages(IMAGES, values))


def test_nan_parameters_are_rolled_back_to_an_earlier_checkpoint(
    compiled, tmp_path, capsys, caplog
):
    """They are NaN after step 6, which is saved. The optimizer skips the updates after it."""
    tx, train_step = compiled
    calls = itertools.count(1)

    def all_nan(x):
        return jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding)

    def spoiling_step(state, batch):
        state, metrics = train_step(state, batch)
        if next(calls) == 6 * CONFIG.training.accumulation:
            state = state._replace(params=jax.tree.map(all_nan, state.params))
        return state, metrics

    config = dataclasses.replace(
        CONFIG,
        training=dataclasses.replace(CONFIG.training, steps=10),
        ema=dataclasses.replace(CONFIG.ema, snapshots_every=5),
        # The steps do not use it; the log does.
        optimizer=Optimizer(decay="cosine"),
    )
    loop.run_steps(config, tmp_path, IMAGES, spoiling_step, loop.first_state(config, tx))
    warning = "3 steps in a row, up to step 9: rolling back to the weights of step 3."
    assert warning in capsys.readouterr().err
    assert saved_steps.steps(tmp_path) == [9, 10]
    assert [path.name for path in tmp_path.glob("checkpoints/*.abandoned")] == ["6-1.abandoned"]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["loss"] is None] == [7, 8, 9]
    assert lines[-1]["skipped"] == 3
    # Step 10 is the update after the three of the restored state.
    rate = learning_rate(config.optimizer, 10, 5)
    assert lines[-1]["learning_rate"] == pytest.approx(float(rate(3)), rel=1e-6)
    assert not caplog.messages
    assert all(np.isfinite(x).all() for x in arrays(tmp_path, 10))


def run_toy(folder, losses, checkpoint, after_step=lambda step: None, on_save=None, **settings):
    """Run a toy training step, which adds one to its only weight and returns the given losses."""
    settings = {"steps": len(losses), "skip_patience": 2, "on_patience": "rollback"} | settings
    config = small_recipe(training=Training(batch_size=16, **settings), checkpoint=checkpoint)
    remaining_losses = iter(losses)

    def train_step(state, batch):
        params = {"w": state.params["w"] + 1}
        after_step(int(state.step) + 1)
        metrics = {"loss": jnp.float32(next(remaining_losses)), "grad_norm": jnp.float32(1)}
        return TrainState(state.step + 1, params, {"ema": params}, state.opt_state), metrics

    params = {"w": jnp.zeros(1)}
    state = TrainState(jnp.int32(0), params, {"ema": params}, {"n": jnp.zeros(1)})
    return loop.run_steps(config, folder, IMAGES, train_step, state, on_save)


def weight(folder, step):
    template = {"params": {"w": np.zeros(1, np.float32)}}
    return float(checkpoints.restore(folder, step, template)["params"]["w"][0])


def test_on_save_gets_every_saved_step_and_its_state(tmp_path):
    calls = []

    def on_save(step, state):
        assert step in saved_steps.steps(tmp_path)
        # A run that is killed now resumes after this step.
        assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == step
        calls.append((step, int(state.step), float(state.params["w"][0])))

    run_toy(tmp_path, [1] * 7, Checkpoint(every=2, keep_last=5), on_save=on_save)
    assert calls == [(2, 2, 2.0), (4, 4, 4.0), (6, 6, 6.0), (7, 7, 7.0)]
    saved = [(step, step, weight(tmp_path, step)) for step in saved_steps.steps(tmp_path)]
    assert saved == calls


def test_on_start_is_called_before_any_write_and_only_if_steps_are_left(tmp_path):
    folder = tmp_path / "run"

    def refuse():
        assert not folder.exists()
        raise ConnectionError("no hub")

    assert loop.train(CONFIG, folder, CONFIG.training.steps, on_start=refuse) == 0
    with pytest.raises(ConnectionError, match="no hub"):
        loop.train(CONFIG, folder, 0, on_start=refuse)
    assert not folder.exists()


def write_class(folder, name):
    (folder / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / name / "0.png")


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_run_whose_classes_have_changed_does_not_resume(tmp_path, num_classes):
    for name in ("cat", "dog", "eel"):
        write_class(tmp_path / "data", name)
    model = UNet(
        image_size=8,
        channels=1,
        widths=(4,),
        attention=(False,),
        groups=2,
        num_classes=num_classes,
    )
    config = small_recipe(model=model, data=Folder(path=str(tmp_path / "data")))
    run = save_run(tmp_path / "run", config, steps=(8,), classes=("cat", "dog", "eel"))
    assert loop.train(config, run, 8) == 0
    (tmp_path / "data" / "dog").rename(tmp_path / "data" / "wolf")
    message = (
        r"^The classes of this data differ .* \(label 1 was dog and is eel\): restore their names, "
        r"choose another --workdir, or start afresh with --overwrite\.$"
    )
    with pytest.raises(ValueError, match=message):
        loop.train(config, run, 8)


def test_short_epochs_are_not_saved_one_by_one(tmp_path):
    """The 40 images make 3 steps an epoch in batches of 16."""
    saved = []
    run_toy(tmp_path, [1] * 7, Checkpoint(), on_save=lambda step, state: saved.append(step))
    assert saved == [7]


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"steps": 999}, r"only 999 steps \(40 images in batches of 16 are 3 an epoch\).*: raise"),
        ({"epochs": 9}, r"only 27 steps .*: set --training\.steps instead of epochs, or lower"),
    ],
)
def test_a_run_of_less_than_a_thousand_steps_is_announced(capsys, length, message):
    config = dataclasses.replace(CONFIG, training=Training(batch_size=16, **length))
    progress.warn_of_short_run(config, 40)
    assert re.fullmatch(rf"The run has {message}.*\.\n", capsys.readouterr().err)


def test_a_short_run_is_announced_before_it_starts(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("started")

    monkeypatch.setattr(loop, "first_state", refuse)
    with pytest.raises(RuntimeError, match="started"):
        loop.train(CONFIG, tmp_path / "run", 0)
    assert "The run has only 16 steps" in capsys.readouterr().err


def test_a_run_of_a_thousand_steps_is_not_called_short(capsys):
    progress.warn_of_short_run(small_recipe(training=Training(steps=1000)), 40)
    assert not capsys.readouterr().err


def test_a_rollback_at_the_last_step_saves_the_restored_weights(tmp_path):
    calls = []

    def on_save(step, state):
        calls.append((step, float(state.params["w"][0])))

    losses = [1, 1, 1, 1, 1, 1, np.nan, np.nan]
    run_toy(tmp_path, losses, Checkpoint(every=3), on_save=on_save)
    assert saved_steps.newest(tmp_path) == 8
    assert weight(tmp_path, 8) == 3
    assert calls[-1] == (8, 3)


def test_the_last_finite_checkpoint_is_kept_while_updates_are_skipped(tmp_path):
    """Updates after step 4 are skipped, and eight steps later the run rolls back.

    Every step is saved. Without skipped updates only the last two would be kept.
    """
    run_toy(tmp_path, [1] * 4 + [np.nan] * 8, Checkpoint(every=1), skip_patience=8)
    assert saved_steps.steps(tmp_path)[-1] == 12
    assert weight(tmp_path, 12) == 3


def test_on_patience_stop_ends_the_run_after_skipped_updates(tmp_path):
    message = "non-finite in 2 steps in a row, up to step 3: set"
    with pytest.raises(ValueError, match=message):
        run_toy(tmp_path, [1, np.nan, np.nan, 1, 1], Checkpoint(every=1), on_patience="stop")
    assert saved_steps.steps(tmp_path)[0] == 1


def test_a_run_that_has_recovered_when_its_steps_are_read_goes_on(tmp_path):
    """The skipped step 4 is read at step 5, which would be read later."""
    losses = [1, 1, np.nan, np.nan, 1, 1, 1]
    run_toy(tmp_path, losses, Checkpoint(every=20), on_patience="stop")
    assert weight(tmp_path, 7) == 7
    losses = [1, 1, *[np.nan] * 5]
    with pytest.raises(ValueError, match="non-finite in 3 steps in a row, up to step 5"):
        run_toy(tmp_path / "ill", losses, Checkpoint(every=20), on_patience="stop")


def test_a_resumed_run_counts_the_updates_that_were_skipped_before(compiled, tmp_path):
    tx, train_step = compiled
    state = loop.first_state(CONFIG, tx)
    skipped = jax.tree.map(lambda x: x, state.opt_state)
    skipped = optax.tree.set(skipped, skipped=jnp.int32(7))
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=1))
    loop.run_steps(config, tmp_path, IMAGES, train_step, state._replace(opt_state=skipped))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["skipped"] == 7


def test_a_failed_sample_grid_does_not_lose_the_checkpoint(tmp_path, monkeypatch):
    def run_out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Reporter, "draw", run_out_of_memory)
    with pytest.raises(MemoryError):
        run_toy(tmp_path, [1], Checkpoint())
    assert saved_steps.newest(tmp_path) == 1


@pytest.mark.parametrize("wait", [True, False])
def test_wait_completes_a_save_before_the_next_step_counts(tmp_path, monkeypatch, wait):
    """Writing the manifest of step 2 takes until step 4 starts, or half a second with `wait`."""
    write = manifest.write
    fourth_step = threading.Event()
    order = []

    def slow_write(folder):
        if folder.name == "2":
            fourth_step.wait(0.5 if wait else 60)
            order.append("saved")
        write(folder)

    def after_step(step):
        order.append(step)
        if step == 4:
            fourth_step.set()

    monkeypatch.setattr(manifest, "write", slow_write)
    checkpoint = Checkpoint(every=2, wait=wait)
    run_toy(tmp_path, [1] * 5, checkpoint, after_step=after_step)
    assert order == ([1, 2, 3, "saved", 4, 5] if wait else [1, 2, 3, 4, "saved", 5])
