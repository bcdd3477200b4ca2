"""What a run leaves behind for people: metrics.jsonl, TensorBoard curves and pictures, loss.png."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import SupportsFloat

import numpy as np
from PIL import Image

from ddpm_jax.figures import loss_curve
from ddpm_jax.files import atomic_file, free_name


class RunLog(AbstractContextManager["RunLog"]):
    """The log of one run under workdir; a context manager, so that TensorBoard's last points are on disk when it ends.

    `metrics.jsonl` holds one object a line, {"step": 10, "loss": 0.03, ...}, written as soon as it is logged. A number
    that is not finite is null there, because JSON has no NaN; TensorBoard gets the NaN itself, and `loss.png` a gap.

    With start_step > 0 the run resumes from that step's checkpoint: later lines, which it is about to write again, and
    a last line cut by a crash are removed, TensorBoard hides its later points, all else stays byte for byte. With
    start_step = 0 metrics of an earlier run are set aside as metrics-1.jsonl, metrics-2.jsonl, ...: nothing is lost.
    On several hosts only the first may open one. Raises ValueError when metrics.jsonl is broken before its last line.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        from tensorboardX import SummaryWriter  # imported late: reading metrics needs no TensorBoard

        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._metrics = path = self.workdir / "metrics.jsonl"
        if path.exists() and start_step > 0:
            _remove_after(path, start_step)
        elif path.exists():
            path.rename(free_name(path))
        self._losses: list[tuple[int, float]] = []
        for record in read_metrics(path) if path.exists() else []:
            self._remember_loss(record)
        self._board = SummaryWriter(
            str(self.workdir / "tensorboard"),
            purge_step=start_step + 1 if start_step > 0 else 0,  # TensorBoard drops what is at this step or later
            flush_secs=30,
            filename_suffix=f".{time.time_ns()}",  # its own names count in seconds: a quick restart would overwrite
        )

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends a line to metrics.jsonl and a point to each TensorBoard curve.

        Raises ValueError for a value called "step".
        """
        if "step" in values:
            raise ValueError('A value cannot be called "step", the name of the line\'s own step; rename it.')
        numbers = {name: float(value) for name, value in values.items()}
        record = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        with open(self._metrics, "a", encoding="utf-8") as file:  # closed each time: a killed run loses no line
            file.write(json.dumps(record, allow_nan=False) + "\n")
        self._remember_loss(record)
        for name, number in numbers.items():
            self._board.add_scalar(name, number, int(step))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Shows the picture in TensorBoard under this name and step."""
        self._board.add_image(name, np.asarray(picture.convert("RGB")), int(step), dataformats="HWC")

    def curve(self) -> None:
        """Draws loss.png anew from all losses so far, those before a resume too, if there are any."""
        if self._losses:
            steps, losses = zip(*self._losses, strict=True)
            loss_curve(steps, losses, self.workdir / "loss.png", title=self.workdir.resolve().name)

    def close(self) -> None:
        """Every TensorBoard point and picture is on disk afterwards."""
        self._board.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember_loss(self, record: dict) -> None:
        if "loss" in record:
            self._losses.append((record["step"], math.nan if record["loss"] is None else record["loss"]))


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The objects of a metrics.jsonl in the order of its lines; None stands for a number that was not finite.

    A cut last line is left out: the run may be writing it just now. Raises FileNotFoundError when there is no file,
    and ValueError, with the line's number, when another line is no object with a step.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no metrics file at '{path}'; give the metrics.jsonl of a run's directory.")
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[bytes, dict]]:
    """Each line's bytes, its newline included, and the object in it; a cut last line is left out."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            _ = record["step"] + 0
        except (ValueError, TypeError, KeyError):
            if not line.endswith(b"\n"):  # only the last line can lack its newline
                return
            raise ValueError(
                f"Line {number} of '{path}' is not an object with a step; mend or remove that line."
            ) from None
        yield line if line.endswith(b"\n") else line + b"\n", record


def _remove_after(path: Path, step: int) -> None:
    kept = [line for line, record in _lines(path) if record["step"] <= step]
    with atomic_file(path) as file:
        file.writelines(kept)
