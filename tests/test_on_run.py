"""What the commands on a run share: their settings' limits, and a run that is not there."""

import pytest

from ddpm_jax.on_run import InBatches, OnRun, parse


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"batch_size": 0}, "--batch-size must be at least 1, not 0"), ({"seed": -1}, r"--seed must be in \[0, 2\*\*32")],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        InBatches(**setting)


def test_a_run_that_is_not_named_or_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="--ckpt is missing: give the directory of a run"):
        parse(InBatches, ["--seed", "1"], "command")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse(OnRun, ["--ckpt", str(tmp_path / "none")], "command")
