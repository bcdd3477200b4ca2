"""Open what `--ckpt` names, and refuse options out of range."""

import pytest
from helpers.pretrained import fixture

from ddpm_jax.cli.run_options import BatchedRunOptions, RunOptions, parse
from ddpm_jax.runs.sources import open_checkpoint


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"seed": -1}, r"--seed must be in \[0, 2\*\*32"),
    ],
)
def test_options_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        BatchedRunOptions(**setting)


def test_a_missing_ckpt_or_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--ckpt is missing: give the directory of a run"):
        parse(BatchedRunOptions, ["--seed", "1"], "command")
    with pytest.raises(FileNotFoundError, match="There is no directory"):
        parse(RunOptions, ["--ckpt", str(tmp_path / "none")], "command")


@pytest.fixture
def pretrained(tmp_path):
    """A model in the diffusers layout."""
    fixture("ddpm", tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    return tmp_path


def test_a_diffusers_model_opens_like_a_run(pretrained):
    source = open_checkpoint(str(pretrained))
    assert source.spec.sampling.sampler == "ddim"
    assert source.params("ema").keys() == source.spec.model.shapes().keys()
    with pytest.raises(ValueError, match="has one set of weights: leave out --weights"):
        source.params("raw")
    with pytest.raises(ValueError, match=r"--checkpoint needs a run, and .* is not one"):
        open_checkpoint(str(pretrained), 3)


def test_the_scheduler_may_have_a_folder_of_its_own(pretrained):
    (pretrained / "scheduler").mkdir()
    (pretrained / "scheduler_config.json").rename(pretrained / "scheduler/scheduler_config.json")
    assert open_checkpoint(str(pretrained)).spec.sampling.sampler == "ddim"


def test_a_ckpt_of_another_kind_is_an_error_that_names_the_choices(tmp_path):
    message = (
        r"is neither a folder nor a network of this package \(.*emoji.*\) nor the name of a hub"
    )
    with pytest.raises(FileNotFoundError, match=message):
        open_checkpoint(str(tmp_path / "none"))
    message = r"holds neither checkpoints nor model_index\.json: give a run such as"
    with pytest.raises(FileNotFoundError, match=message):
        open_checkpoint(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give its folder"):
        open_checkpoint(str(tmp_path / "file"))
