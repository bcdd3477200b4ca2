"""Run the mains of the scripts in this process; read their errors and their checkpoints."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax.cli import arguments, sample, train
from ddpm_jax.runs import saved_steps

TINY = (
    "--config convunet_mnist --data digits --no-compilation-cache --model.image-size 8 "
    "--model.widths 32 --model.groups 4 --model.time-embedding-dim 8 --model.dropout 0.1 "
    "--data.flip --optimizer.decay constant --optimizer.floor 0 --optimizer.learning-rate 0.01 "
    "--training.batch-size 16 --training.accumulation 2 --checkpoint.every 4 --log.every 1 "
    "--log.samples 4 --log.sample-steps 2 --sampling.steps 10"
).split()
"""Arguments of train.py for a tiny network."""

CONFIGS = Path(__file__).parents[2] / "configs"
train_main = partial(train.main, recipes=CONFIGS)

SMALL = ["--config", "small", "--no-compilation-cache"]
"""First arguments for `small_main`, which select the recipe of `helpers.saved_runs`."""
small_main = partial(train.main, recipes=Path(__file__).parent / "recipes")


def run(main, *args) -> None:
    """Call a script's main with these arguments, as the script does."""
    with arguments.one_line_errors(False):
        main([str(arg) for arg in args])


def fails(capsys, main, *args) -> str:
    """Run a command that must exit with status 2; return what it prints to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(main, *args)
    assert end.value.code == 2
    return capsys.readouterr().err


def one_line(capsys, main, *args) -> str:
    """Run a command that must exit with status 2 and one line; return the line."""
    message = fails(capsys, main, *args)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def unboxed(message: str) -> str:
    """The text of a message in a box of tyro's, on one line."""
    return " ".join(message.translate(str.maketrans("│─╭╮╰╯", "      ")).split())


def arrays(workdir: Path, step: int) -> list[np.ndarray]:
    """All arrays of a checkpoint."""
    import orbax.checkpoint as ocp

    folders = [
        workdir.resolve() / saved_steps.FOLDER / str(step) / name
        for name in ("params", "ema_params", "opt_state")
    ]
    trees = []
    with ocp.StandardCheckpointer() as reader:
        for folder in folders:
            shapes = reader.metadata(folder).item_metadata.tree
            zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            trees.append(reader.restore(folder, zeros))
    return jax.tree.leaves(trees)


def draw(ckpt: Path, *args) -> None:
    """Run sample.py."""
    run(sample.main, "--ckpt", ckpt, "--no-compilation-cache", *args)
