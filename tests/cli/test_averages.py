"""A run with several averages: resume keeps every snapshot, pictures are drawn with any of them."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import TINY, arrays, draw, one_line, run, train_main

from ddpm_jax.cli import sample
from ddpm_jax.runs import checkpoints
from ddpm_jax.runs import steps as saved_steps
from ddpm_jax.runs.directory import load_config

pytestmark = pytest.mark.usefixtures("optimized")
AVERAGES = "--ema.power 0.05 0.1 --ema.others 0.1 --ema.snapshots-every 2 --checkpoint.keep-last 1".split()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    """A run of 8 steps with three more averages than one."""
    workdir = tmp_path_factory.mktemp("averaged")
    run(train_main, *TINY, *AVERAGES, "--training.steps", 8, "--workdir", workdir, "--log.samples", 0)
    return workdir


def test_resume_keeps_every_snapshot_bit_for_bit(averaged, tmp_path):
    for steps in (5, 8):
        run(train_main, *TINY, *AVERAGES, "--training.steps", steps, "--workdir", tmp_path, "--log.samples", 0)
    assert saved_steps.steps(tmp_path) == saved_steps.steps(averaged) == [8]
    assert saved_steps.steps(tmp_path, saved_steps.SNAPSHOTS) == saved_steps.steps(averaged, saved_steps.SNAPSHOTS)
    like = {name: load_config(averaged, 8).model.init(jax.random.key(0)) for name in ("power_0.05", "power_0.1")}
    for step in (2, 4, 6, 8):
        ours, theirs = (
            checkpoints.read_trees(f / saved_steps.SNAPSHOTS / str(step), like) for f in (tmp_path, averaged)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for whole, resumed in zip(arrays(averaged, 8), arrays(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(whole, resumed)


def test_pictures_are_drawn_with_any_average(averaged, tmp_path, capsys):
    images = {}
    for weights in ("ema", "ema_0.1", "power_0.1", "0.10", "0.08"):
        draw(averaged, "--num", 4, "--weights", weights, "--out", tmp_path / f"{weights}.npz")
        images[weights] = np.load(tmp_path / f"{weights}.npz")["images"].astype(int)
    assert np.abs(images["0.10"] - images["power_0.1"]).max() <= 1
    for one, other in itertools.combinations(("ema", "ema_0.1", "power_0.1", "0.08"), 2):
        assert np.abs(images[one] - images[other]).max() > 0
    for weights, words in {
        "emma": "ema, ema_0.1, power_0.05, power_0.1",
        "0.01": "more than 5%",
        "1": "0.2887",
    }.items():
        assert words in one_line(capsys, sample.main, "--ckpt", averaged, "--weights", weights)
