"""What a run leaves behind for people: metrics.jsonl, TensorBoard curves and pictures, loss.png."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, SupportsFloat

import numpy as np
from PIL import Image

from ddpm_jax.figures.plots import loss_curve
from ddpm_jax.files import atomic_file, free_name
from ddpm_jax.runs.log_levels import log_level

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

FLUSH_SECONDS = 30


class RunLog(AbstractContextManager["RunLog"]):
    """The log of one run under workdir; a context manager, so that TensorBoard's last points are on disk when it ends.

    `metrics.jsonl` holds one object a line, {"step": 10, "loss": 0.03, ...}, written as soon as it is logged. A number
    that is not finite is null there, because JSON has no NaN; TensorBoard gets the NaN itself, and `loss.png` a gap.
    What cannot be written is told on stderr and ends nothing: lines wait for the next one, the rest is left out.

    With start_step > 0 the run resumes from that step's checkpoint: later lines, which it is about to write again, and
    a last line cut by a crash are removed, TensorBoard hides its later points, all else stays byte for byte. With
    start_step = 0 metrics of an earlier run are set aside as metrics-1.jsonl, metrics-2.jsonl, ...: nothing is lost.
    On several hosts only the first may open one. Raises ValueError when metrics.jsonl is broken before its last line.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._metrics = path = self.workdir / "metrics.jsonl"
        if path.exists() and start_step > 0:
            _remove_after(path, start_step)
        elif path.exists():
            path.rename(free_name(path))
        self._losses: list[tuple[int, float]] = []
        self._unwritten: list[bytes] = []
        for record in read_metrics(path) if path.exists() else []:
            self._remember_loss(record)
        self._board = TensorBoardWriter(self.workdir / "tensorboard", start_step)

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends a line to metrics.jsonl and a point to each TensorBoard curve.

        Raises ValueError for a value called "step".
        """
        if "step" in values:
            raise ValueError(
                'A value cannot be called "step", the name of the line\'s own step; rename it.'
            )
        numbers = {name: float(value) for name, value in values.items()}
        record = {"step": int(step)} | {
            name: x if math.isfinite(x) else None for name, x in numbers.items()
        }
        self._unwritten.append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._write_lines()
        self._remember_loss(record)
        with warn_on_write_error("TensorBoard's points"):
            self._board.scalars(int(step), numbers)

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Shows the picture in TensorBoard under this name and step."""
        with warn_on_write_error("TensorBoard's picture"):
            self._board.image(int(step), name, picture)

    def curve(self) -> None:
        """Draws loss.png anew from all losses so far, those before a resume too, if there are any."""
        if self._losses:
            steps, losses = zip(*self._losses, strict=True)
            with warn_on_write_error("loss.png"):
                loss_curve(
                    steps, losses, self.workdir / "loss.png", title=self.workdir.resolve().name
                )

    def close(self) -> None:
        """Every TensorBoard point and picture is on disk afterwards, and lines that waited."""
        self._write_lines()
        with warn_on_write_error("TensorBoard's points"):
            self._board.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write_lines(self) -> None:
        if self._unwritten:
            with warn_on_write_error(str(self._metrics)):
                append(
                    self._metrics, b"".join(self._unwritten)
                )  # closed each time: a killed run loses no line
                self._unwritten = []

    def _remember_loss(self, record: dict) -> None:
        if "loss" in record:
            self._losses.append(
                (record["step"], math.nan if record["loss"] is None else record["loss"])
            )


class TensorBoardWriter:
    """TensorBoard's events, as records of tensorboardX, whose own writer of events has a thread.

    After a failed write the file is cut to what was flushed, and the next write opens a new file.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder, self._flushed, self._size = folder, 0.0, 0
        self._writer: RecordWriter | None = None
        self._purge_step: int | None = start_step + 1 if start_step > 0 else 0

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to each curve; an OSError loses those since the last flush too."""
        from tensorboardX.summary import (
            scalar,
        )  # imported late: reading metrics needs no TensorBoard

        with log_level(
            logging.ERROR, "tensorboardX.x2num"
        ):  # it warns of NaN, which the reporter names already
            summaries = [scalar(name, number) for name, number in numbers.items()]
        self._write(*({"step": step, "summary": summary} for summary in summaries))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Add a picture under this name."""
        from tensorboardX.summary import image

        pixels = np.asarray(picture.convert("RGB"))
        self._write({"step": step, "summary": image(name, pixels, dataformats="HWC")})

    def close(self) -> None:
        """End the file, if there is one; an OSError loses what was added since the last flush."""
        if self._writer is not None:
            with self._cut_on_failure():
                self._writer.flush()
                self._writer.close()
            self._writer = None

    def _write(self, *events: dict) -> None:
        from tensorboardX.proto.event_pb2 import Event

        writer = self._writer or self._open()
        with self._cut_on_failure():
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                writer.flush()
                self._size, self._flushed = self._path.stat().st_size, time.monotonic()

    @contextmanager
    def _cut_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Closing ends the file even where it cannot write what it still holds, which would
            # otherwise follow later, behind the cut.
            if self._writer is not None:
                with suppress(OSError):
                    self._writer.close()
            self._writer = None
            os.truncate(self._path, self._size)
            if not self._size:
                self._path.unlink()
            raise

    def _open(self) -> "RecordWriter":
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        self._path = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._size, self._flushed = 0, 0.0
        self._writer = RecordWriter(str(self._path))
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        with self._cut_on_failure():
            self._writer.write(first.SerializeToString())
        if self._purge_step is not None:  # TensorBoard drops what is at this step or later
            self._write(
                {"step": self._purge_step, "session_log": SessionLog(status=SessionLog.START)}
            )
            self._purge_step = None
        return self._writer


class NullLog:
    """The log of a host that is not the first: nothing is left behind."""

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None: ...

    def image(self, step: int, name: str, picture: Image.Image) -> None: ...

    def curve(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def warn_on_write_error(what: str) -> Iterator[None]:
    """Where the block cannot write, that is told in a line on stderr, and what comes after it goes on."""
    try:
        yield
    except OSError as error:
        print(f"{what} was not written, and training goes on: {error}", file=sys.stderr)


def append(path: Path, lines: bytes) -> None:
    """Adds all of the lines to a file, or by OSError none of them."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(lines)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The objects of a metrics.jsonl in the order of its lines; None stands for a number that was not finite.

    A cut last line is left out: the run may be writing it just now. Raises FileNotFoundError when there is no file,
    and ValueError, with the line's number, when another line is no object with a step.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no metrics file at '{path}'; give the metrics.jsonl of a run's directory."
        )
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
