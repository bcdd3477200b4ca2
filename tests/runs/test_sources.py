"""What the commands on a run share: their settings' limits, and a run that is not there."""

import pytest
from helpers.pretrained import fixture

from ddpm_jax.cli.run_options import BatchedRunOptions, RunOptions, parse
from ddpm_jax.runs.sources import open_any


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"seed": -1}, r"--seed must be in \[0, 2\*\*32"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        BatchedRunOptions(**setting)


def test_a_run_that_is_not_named_or_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="--ckpt is missing: give the directory of a run"):
        parse(BatchedRunOptions, ["--seed", "1"], "command")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse(RunOptions, ["--ckpt", str(tmp_path / "none")], "command")


@pytest.fixture
def theirs(tmp_path):
    """A net in the layout of diffusers."""
    fixture("ddpm", tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return tmp_path


def test_a_net_in_the_layout_of_diffusers_stands_where_a_run_does(theirs):
    source = open_any(str(theirs))
    assert source.recipe.sampling.sampler == "ddim"
    assert source.params("ema").keys() == source.recipe.model.shapes().keys()
    with pytest.raises(ValueError, match="has one set of weights: leave --weights out"):
        source.params("raw")
    with pytest.raises(
        ValueError, match=r"--checkpoint names a step of a run, which .* is not: leave it out"
    ):
        open_any(str(theirs), 3)


def test_parts_may_lie_in_either_place(theirs):
    (theirs / "scheduler").mkdir()
    (theirs / "scheduler_config.json").rename(theirs / "scheduler/scheduler_config.json")
    assert open_any(str(theirs)).recipe.sampling.sampler == "ddim"


def test_what_is_neither_is_told_what_either_is(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="is neither a folder here nor owner/name, a repository of the hub"
    ):
        open_any(str(tmp_path / "none"))
    with pytest.raises(
        FileNotFoundError,
        match=r"holds neither checkpoints nor model_index\.json: give a run such as",
    ):
        open_any(str(tmp_path))
    with pytest.raises(ValueError, match="is a file: give the folder it is in"):
        (tmp_path / "file").touch()
        open_any(str(tmp_path / "file"))
