"""What may go on in a directory, what is thrown away, and which parameters come out of it."""

import dataclasses
import json
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
from ddpm_jax.runs.steps import FOLDER, SNAPSHOTS, config_file, steps
from ddpm_jax.runs.weights import load_params
from ddpm_jax.training.ema import MAX_RESIDUAL, Ema, power_gamma
from ddpm_jax.training.optimizer import Optimizer

CONFIG = small_recipe(training=Training(batch_size=8, steps=5), parallel=Parallel(cpu_devices=3))
PARAMS = random_params(CONFIG.model)


def scaled(factor):
    """PARAMS times a number."""
    return jax.tree.map(lambda x: np.float32(factor * x), PARAMS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with one checkpoint, of step 5, whose average is twice the parameters."""
    workdir = tmp_path_factory.mktemp("saved")
    parts = {
        "params": PARAMS,
        "ema_params": {"ema": scaled(2)},
        "opt_state": {"count": np.zeros(1)},
    }
    with CheckpointWriter(workdir) as checkpoints:
        checkpoints.save(5, parts, config_to_json(CONFIG))
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the directory with one checkpoint, of step 5."""
    return shutil.copytree(saved, tmp_path / "run")


def test_an_empty_directory_starts_at_zero(tmp_path):
    assert directory.resume(CONFIG, tmp_path / "new") == 0
    assert directory.cpu_devices(tmp_path / "new") is None


def test_the_same_recipe_goes_on_however_long_and_spread(saved):
    free = {"checkpoint": Checkpoint(every=2), "parallel": Parallel(route="jit", fsdp=2)}
    longer = dataclasses.replace(CONFIG, training=Training(batch_size=8, steps=50), **free)
    assert directory.resume(longer, saved) == 5


def test_a_run_knows_its_cpu_devices(run):
    assert directory.cpu_devices(run) == 3
    directory.write_config(run, dataclasses.replace(CONFIG, parallel=Parallel(cpu_devices=4)))
    assert directory.cpu_devices(run) == 3
    config_file(run, 5).write_text("{")
    assert directory.cpu_devices(run) == 4
    (run / "config.json").write_text("{")
    assert directory.cpu_devices(run) is None


def test_what_changes_the_run_is_refused_by_name(saved):
    changes = {
        r"\(optimizer\.learning_rate\)": {"optimizer": Optimizer(learning_rate=1.0)},
        r"\(model\.image_size\)": {"model": dataclasses.replace(CONFIG.model, image_size=16)},
        r"\(data\.flip\)": {"data": Digits(flip=True)},
        r"\(training\.batch_size\)": {"training": Training(batch_size=16, steps=5)},
    }
    for named, change in changes.items():
        with pytest.raises(ValueError, match=named):
            directory.resume(dataclasses.replace(CONFIG, **change), saved)


def test_a_config_that_cannot_be_read_is_named(run):
    config = config_file(run, 5)
    config.write_text("{")
    manifest.write(config.parents[1])
    with pytest.raises(ValueError, match=r"cannot be read .*--overwrite"):
        directory.resume(CONFIG, run)


def test_parameters_come_back_by_name(saved):
    for weights, factor in (("raw", 1), ("ema", 2)):
        found = load_params(CONFIG, saved, 5, weights)
        jax.tree.map(np.testing.assert_array_equal, found, scaled(factor))


AVERAGES = Ema(extra_decays=(0.9,), power=(0.05, 0.1), snapshots_every=2)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of 8 steps whose parameters are t^2 times PARAMS after step t, and its config."""
    config, workdir = dataclasses.replace(CONFIG, ema=AVERAGES), tmp_path_factory.mktemp("averaged")
    averages = {name: scaled(0) for name in (*AVERAGES.decays, *AVERAGES.power_averages)}
    with CheckpointWriter(workdir) as checkpoints:
        for t in range(1, 9):
            newest = scaled(t**2)
            for name, length in AVERAGES.power_averages.items():
                beta = (1 - 1 / t) ** (power_gamma(length) + 1)
                averages[name] = jax.tree.map(
                    lambda a, p, beta=beta: np.float32(beta * a + (1 - beta) * p),
                    averages[name],
                    newest,
                )
            saved_weights.snapshot(AVERAGES, checkpoints, t, 8, averages)
            if t in (5, 8):
                parts = {"params": newest, "ema_params": averages}
                checkpoints.save(t, parts, config_to_json(config))
    return config, workdir


def test_an_average_of_any_length_is_rebuilt(averaged):
    for step, length in ((8, 0.06), (8, 0.08), (8, 0.12), (5, 0.08), (8, 0.1)):
        found = load_params(*averaged, step, str(length))
        edges = (np.arange(step + 1) / step) ** (power_gamma(length) + 1)
        wanted = np.diff(edges) @ np.arange(1, step + 1) ** 2
        raw = step**2
        for ours, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True):
            most = MAX_RESIDUAL * (raw - wanted) * np.abs(leaf).max()
            case = f"step {step}, length {length}"
            np.testing.assert_allclose(ours, wanted * leaf, atol=most, err_msg=case)
            assert ours.sharding.device_set == set(jax.local_devices())


def test_a_tracked_average_is_read_by_name_and_is_what_is_rebuilt_at_its_length(averaged):
    named = load_params(*averaged, 5, "power_0.1")
    rebuilt = load_params(*averaged, 5, "0.10")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), named, rebuilt
    )
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(named)) > 0
    other = load_params(*averaged, 5, "ema_0.9")
    assert {float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other)} == {0.0}


def test_weights_that_are_not_there_are_named(averaged):
    cases = {
        "emma": "unknown weights 'emma'; there are: raw, ema, ema_0.9, power_0.05, power_0.1$",
        "0.9999": "must be above 0 and at most 0.2887, not 0.9999",
        "nan": "not nan",
        "0.01": r"off by \d+% at step 8, more than 5%; 3 earlier .* for 0.05, 0.06, .*0.11, 0.12",
    }
    for weights, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            load_params(*averaged, 8, weights)
        assert "\n" not in str(error.value), weights


def test_a_run_without_tracks_has_nothing_to_rebuild_from(saved):
    with pytest.raises(
        ValueError, match=r"did not track \(train with --ema.power 0.05 0.1\); there are: raw, ema$"
    ):
        load_params(CONFIG, saved, 5, "0.08")


def test_snapshots_are_taken_at_the_cadence_asked_for_or_64_times_a_run(
    averaged, tmp_path, monkeypatch
):
    assert steps(averaged[1], SNAPSHOTS) == [2, 4, 6, 8]
    taken = []
    monkeypatch.setattr(
        CheckpointWriter, "save_snapshot", lambda _, step, trees: taken.append((step, set(trees)))
    )
    averages, checkpoints = {"ema": {}, "power_0.1": {}}, CheckpointWriter(tmp_path)
    for step in range(1, 1001):
        saved_weights.snapshot(Ema(power=(0.1,)), checkpoints, step, 1000, averages)
        saved_weights.snapshot(Ema(), checkpoints, step, 1000, averages)
    assert taken == [(step, {"power_0.1"}) for step in range(16, 1001, 16)]


def test_to_begin_keeps_what_the_start_has_behind_it(averaged, tmp_path):
    config, folder = averaged[0], shutil.copytree(averaged[1], tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    directory.prepare(folder, config, 5, overwrite=False)
    assert steps(folder, SNAPSHOTS) == [2, 4]
    assert steps(folder) == [5]
    assert (folder / FOLDER / "8-1.damaged").is_dir()
    assert (folder / "config.json").exists()
    directory.prepare(folder, config, 0, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt"]


def test_the_cadence_of_snapshots_may_change_and_the_tracks_may_not(averaged):
    config, folder = averaged
    slower = dataclasses.replace(AVERAGES, snapshots_every=4)
    assert directory.resume(dataclasses.replace(config, ema=slower), folder) == 8
    with pytest.raises(ValueError, match=r"ema\.power"):
        directory.resume(dataclasses.replace(config, ema=Ema(extra_decays=(0.9,))), folder)


def test_another_models_checkpoint_is_an_error_that_names_a_leaf(saved):
    assert isinstance(CONFIG.model, ConvUNet)
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, channels=3))
    message = r"another model's params .*conv_out/bias is \(1,\) there and \(3,\) in the recipe"
    with pytest.raises(ValueError, match=message):
        load_params(other, saved, 5, "raw")


def test_a_run_without_a_checkpoint_yet_is_recognised(tmp_path):
    directory.write_config(tmp_path, CONFIG)
    assert directory.resume(CONFIG, tmp_path) == 0
    with pytest.raises(ValueError, match=r"data\.flip"):
        directory.resume(dataclasses.replace(CONFIG, data=Digits(flip=True)), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        directory.resume(CONFIG, tmp_path / "config.json")


def test_clear_removes_a_run_and_nothing_else(run):
    (run / "mine").mkdir()
    (run / "metrics-1.jsonl").write_text("")
    directory.write_config(run, CONFIG)
    written = json.loads((run / "config.json").read_text())
    assert written == json.loads(json.dumps(config_to_json(CONFIG)))
    directory.clear(run)
    assert [path.name for path in run.iterdir()] == ["mine"]


def test_two_runs_do_not_share_a_directory(tmp_path):
    with (
        directory.lock(tmp_path / "new"),
        pytest.raises(ValueError, match="another run is at work"),
        directory.lock(tmp_path / "new"),
    ):
        pass
    with directory.lock(tmp_path / "new"):
        pass


def test_a_lock_is_gone_with_its_process(tmp_path):
    """The other process takes the lock alone, which is quick; `make faults` starts a second run."""
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
        with pytest.raises(ValueError, match="another run is at work"), directory.lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with directory.lock(tmp_path):
            pass


def test_a_file_is_no_directory_for_a_run(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="is a file: choose another --workdir"),
        directory.lock(tmp_path / "file"),
    ):
        pass
