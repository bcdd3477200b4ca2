"""Resume, lock and clear a run's directory, and load parameters from it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.saved_runs import random_params, small_recipe

from ddpm_jax.config import Checkpoint, Training, config_to_json
from ddpm_jax.data.digits import Digits
from ddpm_jax.devices.parallel import Parallel
from ddpm_jax.models.conv_unet import ConvUNet
from ddpm_jax.runs import directory, manifest
from ddpm_jax.runs import weights as saved_weights
from ddpm_jax.runs.checkpoints import CheckpointWriter
from ddpm_jax.runs.saved_steps import FOLDER, SNAPSHOTS, config_file, resolve_checkpoint, steps
from ddpm_jax.runs.weights import load_params
from ddpm_jax.training.ema import MAX_RESIDUAL, Ema, power_gamma
from ddpm_jax.training.optimizer import Optimizer

CONFIG = small_recipe(training=Training(batch_size=8, steps=5), parallel=Parallel(cpu_devices=3))
PARAMS = random_params(CONFIG.model)


def scaled(factor):
    """PARAMS multiplied by a number."""
    return jax.tree.map(lambda x: np.float32(factor * x), PARAMS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with one checkpoint, of step 5. Its average is twice the parameters."""
    workdir = tmp_path_factory.mktemp("saved")
    items = {
        "params": PARAMS,
        "ema_params": {"ema": scaled(2)},
        "opt_state": {"count": np.zeros(1)},
    }
    with CheckpointWriter(workdir) as checkpoints:
        checkpoints.save(5, items, config_to_json(CONFIG))
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the directory with one checkpoint, of step 5."""
    return shutil.copytree(saved, tmp_path / "run")


def test_an_empty_directory_starts_at_zero(tmp_path):
    assert directory.resume(CONFIG, tmp_path / "new") == 0
    assert directory.cpu_devices(tmp_path / "new") is None


def test_a_run_may_resume_with_other_steps_devices_and_cadences(saved):
    free = {"checkpoint": Checkpoint(every=2), "parallel": Parallel(route="jit", fsdp=2)}
    longer = dataclasses.replace(CONFIG, training=Training(batch_size=8, steps=50), **free)
    assert directory.resume(longer, saved) == 5


def test_cpu_devices_come_from_the_newest_readable_config(run):
    assert directory.cpu_devices(run) == 3
    directory.write_config(run, dataclasses.replace(CONFIG, parallel=Parallel(cpu_devices=4)))
    assert directory.cpu_devices(run) == 3
    config_file(run, 5).write_text("{")
    assert directory.cpu_devices(run) == 4
    (run / "config.json").write_text("{")
    assert directory.cpu_devices(run) is None


def test_a_changed_recipe_is_refused_and_the_setting_named(saved):
    changes = {
        r"\(optimizer\.learning_rate\)": {"optimizer": Optimizer(learning_rate=1.0)},
        r"\(model\.image_size\)": {"model": dataclasses.replace(CONFIG.model, image_size=16)},
        r"\(data\.flip\)": {"data": Digits(flip=True)},
        r"\(training\.batch_size\)": {"training": Training(batch_size=16, steps=5)},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            directory.resume(dataclasses.replace(CONFIG, **change), saved)


def test_an_unreadable_config_is_an_error(run):
    config = config_file(run, 5)
    config.write_text("{")
    manifest.write(config.parents[1])
    with pytest.raises(ValueError, match=r"Cannot read .*metadata \(.*--overwrite"):
        directory.resume(CONFIG, run)


def test_weights_are_loaded_by_name(saved):
    for weights, factor in (("raw", 1), ("ema", 2)):
        params = load_params(CONFIG, saved, 5, weights)
        jax.tree.map(np.testing.assert_array_equal, params, scaled(factor))


AVERAGES = Ema(extra_decays=(0.9,), power=(0.05, 0.1), snapshots_every=2)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A config, and a run of 8 steps whose parameters after step t are t^2 times PARAMS."""
    config = dataclasses.replace(CONFIG, ema=AVERAGES)
    workdir = tmp_path_factory.mktemp("averaged")
    averages = {name: scaled(0) for name in (*AVERAGES.decays, *AVERAGES.power_averages)}
    with CheckpointWriter(workdir) as checkpoints:
        for t in range(1, 9):
            params = scaled(t**2)
            for name, length in AVERAGES.power_averages.items():
                beta = (1 - 1 / t) ** (power_gamma(length) + 1)

                def update(average, p, beta=beta):
                    return np.float32(beta * average + (1 - beta) * p)

                averages[name] = jax.tree.map(update, averages[name], params)
            saved_weights.save_snapshot_if_due(AVERAGES, checkpoints, t, 8, averages)
            if t in (5, 8):
                items = {"params": params, "ema_params": averages}
                checkpoints.save(t, items, config_to_json(config))
    return config, workdir


def test_an_average_of_any_length_is_rebuilt_from_snapshots(averaged):
    for step, length in ((8, 0.06), (8, 0.08), (8, 0.12), (5, 0.08), (8, 0.1)):
        rebuilt = load_params(*averaged, step, str(length))
        # The weight of step t is the integral of the profile over (t - 1, t].
        edges = (np.arange(step + 1) / step) ** (power_gamma(length) + 1)
        expected = np.diff(edges) @ np.arange(1, step + 1) ** 2
        raw = step**2
        for ours, leaf in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(PARAMS), strict=True):
            tolerance = MAX_RESIDUAL * (raw - expected) * np.abs(leaf).max()
            case = f"step {step}, length {length}"
            np.testing.assert_allclose(ours, expected * leaf, atol=tolerance, err_msg=case)
            assert ours.sharding.device_set == set(jax.local_devices())


def test_a_rebuilt_average_equals_the_saved_one_of_the_same_length(averaged):
    named = load_params(*averaged, 5, "power_0.1")
    rebuilt = load_params(*averaged, 5, "0.10")

    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    jax.tree.map(assert_close, named, rebuilt)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(named)) > 0
    other = load_params(*averaged, 5, "ema_0.9")
    assert {float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other)} == {0.0}


def test_unknown_weights_are_an_error_that_names_the_choices(averaged):
    cases = {
        "emma": r"Unknown weights 'emma': .* raw, ema, ema_0\.9, power_0\.05, power_0\.1\.$",
        "0.9999": "must be above 0 and at most 0.2887, not 0.9999",
        "nan": "not nan",
        "0.01": r"off by \d+% at step 8, .* 3 earlier .* of 0\.05, 0\.06, .*0\.11, 0\.12",
    }
    for weights, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_params(*averaged, 8, weights)
        assert "\n" not in str(error.value), weights


def test_a_run_without_power_averages_cannot_rebuild_any(saved):
    message = r"does not have: choose one of raw, ema, or train with --ema\.power 0\.05 0\.1\.$"
    with pytest.raises(ValueError, match=message):
        load_params(CONFIG, saved, 5, "0.08")


def test_snapshots_are_saved_at_their_cadence_or_64_times_a_run(averaged, tmp_path, monkeypatch):
    assert steps(averaged[1], SNAPSHOTS) == [2, 4, 6, 8]
    saved = []

    def record(_, step, trees):
        saved.append((step, set(trees)))

    monkeypatch.setattr(CheckpointWriter, "save_snapshot", record)
    averages = {"ema": {}, "power_0.1": {}}
    checkpoints = CheckpointWriter(tmp_path)
    for step in range(1, 1001):
        for settings in (Ema(power=(0.1,)), Ema()):
            saved_weights.save_snapshot_if_due(settings, checkpoints, step, 1000, averages)
    assert saved == [(step, {"power_0.1"}) for step in range(16, 1001, 16)]


def test_prepare_keeps_the_steps_up_to_the_start_and_overwrite_keeps_none(averaged, tmp_path):
    config = averaged[0]
    folder = shutil.copytree(averaged[1], tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    directory.prepare(folder, config, 5)
    assert steps(folder, SNAPSHOTS) == [2, 4]
    assert steps(folder) == [5]
    assert (folder / FOLDER / "8-1.corrupt").is_dir()
    assert (folder / "config.json").exists()
    directory.prepare(folder, config, 0, overwritten=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt"]


def test_a_run_may_resume_with_another_snapshot_cadence_but_not_other_averages(averaged):
    config, folder = averaged
    slower = dataclasses.replace(AVERAGES, snapshots_every=4)
    assert directory.resume(dataclasses.replace(config, ema=slower), folder) == 8
    with pytest.raises(ValueError, match=r"ema\.power"):
        directory.resume(dataclasses.replace(config, ema=Ema(extra_decays=(0.9,))), folder)


def test_a_checkpoint_of_another_model_is_an_error_that_names_a_leaf(saved):
    assert isinstance(CONFIG.model, ConvUNet)
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, channels=3))
    message = r"params of another model .*conv_out/bias is \(1,\) there and \(3,\) in the recipe"
    with pytest.raises(ValueError, match=message):
        load_params(other, saved, 5, "raw")


def test_a_run_without_a_checkpoint_is_checked_too(tmp_path):
    directory.write_config(tmp_path, CONFIG)
    assert directory.resume(CONFIG, tmp_path) == 0
    with pytest.raises(ValueError, match=r"data\.flip"):
        directory.resume(dataclasses.replace(CONFIG, data=Digits(flip=True)), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        directory.resume(CONFIG, tmp_path / "config.json")


def test_clear_removes_the_files_of_a_run_only(run):
    (run / "mine").mkdir()
    (run / "metrics-1.jsonl").write_text("")
    directory.write_config(run, CONFIG)
    written = json.loads((run / "config.json").read_text())
    assert written == json.loads(json.dumps(config_to_json(CONFIG)))
    directory.clear(run)
    assert [path.name for path in run.iterdir()] == ["mine"]


def test_clear_removes_nothing_from_a_directory_without_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "torch.pt").write_text("mine")
    (tmp_path / "samples.png").write_text("mine")
    directory.clear(tmp_path)
    assert (tmp_path / "checkpoints" / "torch.pt").exists()


def test_clear_removes_a_link_and_not_what_it_names(run, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    directory.write_config(run, CONFIG)
    (run / "snapshots").symlink_to(elsewhere)
    directory.clear(run)
    assert not (run / "snapshots").is_symlink()
    assert elsewhere.exists()


def test_two_runs_cannot_use_one_directory(tmp_path):
    with (
        directory.lock(tmp_path / "new"),
        pytest.raises(ValueError, match="Another run is using"),
        directory.lock(tmp_path / "new"),
    ):
        pass
    with directory.lock(tmp_path / "new"):
        pass


def test_a_run_that_ends_early_removes_the_folder_only_if_it_made_it(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with directory.lock(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    """The other process only takes the lock, which is quick; `make faults` starts a second run."""
    path = str(tmp_path / directory.LOCK)
    code = (
        f"import filelock, os; lock = filelock.FileLock({path!r}); lock.acquire(); "
        "print('held', flush=True); os.read(0, 1)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another run is using"), directory.lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with directory.lock(tmp_path):
            pass


def test_a_file_is_refused_as_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="is a file: choose another --workdir"),
        directory.lock(tmp_path / "file"),
    ):
        pass


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"), directory.lock(tmp_path / "file" / "x"):
        pass
    name = os.fsdecode(b"r\xfcn")
    with pytest.raises(ValueError, match="is not UTF-8"):
        directory.resume(CONFIG, tmp_path / name)
    with pytest.raises(ValueError, match="is not UTF-8"):
        resolve_checkpoint(tmp_path / name)
