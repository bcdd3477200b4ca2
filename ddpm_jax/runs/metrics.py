"""Log a run: metrics.jsonl, TensorBoard curves and images, and the plot loss.png."""

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

from ddpm_jax.errors import one_line
from ddpm_jax.figures.plots import loss_curve
from ddpm_jax.files import atomic_file, free_name
from ddpm_jax.runs.log_levels import log_level

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

METRICS = "metrics.jsonl"
FLUSH_SECONDS = 30
"""Seconds between flushes of TensorBoard's file. A full disk loses the points in between."""


class RunLog(AbstractContextManager["RunLog"]):
    """The log of one run in `workdir`. Leaving the context flushes TensorBoard's last points.

    `metrics.jsonl` has one object per line, {"step": 10, "loss": 0.03, ...}, written at once. A
    non-finite number is null there, because JSON has no NaN; TensorBoard gets the NaN itself, and
    `loss.png` shows a gap. A failed write is reported on stderr, and training continues: lines of
    metrics.jsonl are written again with the next line, anything else is lost.

    With start_step > 0 the run resumes from that step's checkpoint. The lines of later steps, which
    the run will write again, and a last line cut off by a crash are removed; the bytes of the other
    lines stay. TensorBoard hides its later points. With start_step = 0 the metrics of an earlier
    run are renamed to metrics-1.jsonl, metrics-2.jsonl, ...

    On several hosts only the primary host may open a log. Raise ValueError if metrics.jsonl has a
    broken line before its last.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / METRICS
        self._metrics = path
        if path.exists() and start_step > 0:
            _remove_after(path, start_step)
        elif path.exists():
            path.rename(free_name(path))
        self._losses: list[tuple[int, float]] = []
        self._unwritten: list[bytes] = []
        if path.exists():
            for record in read_metrics(path):
                self._remember_loss(record)
        self._board = TensorBoardWriter(self.workdir / "tensorboard", start_step)

    def scalars(self, step: int, values: Mapping[str, SupportsFloat | np.ndarray]) -> None:
        """Append a line to metrics.jsonl and a point to each TensorBoard curve.

        A value is a number or a row of numbers, such as the loss in each band of t, whose curves
        are called loss_bands/0, loss_bands/1, ... Raise ValueError if a value is called "step".
        """
        if "step" in values:
            raise ValueError(
                'A value cannot be called "step", the name of the line\'s own step: rename it.'
            )
        record: dict = {"step": int(step)}
        record |= {name: _to_json(value) for name, value in values.items()}
        self._unwritten.append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._write_lines()
        self._remember_loss(record)
        with warn_on_write_error("TensorBoard points"):
            self._board.scalars(int(step), _curves(values))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Show a picture in TensorBoard under this name and step."""
        with warn_on_write_error("a TensorBoard image"):
            self._board.image(int(step), name, picture)

    def curve(self) -> None:
        """Draw loss.png from all losses so far, including those before a resume."""
        if self._losses:
            steps, losses = zip(*self._losses, strict=True)
            title = self.workdir.resolve().name
            with warn_on_write_error("loss.png"):
                loss_curve(steps, losses, self.workdir / "loss.png", title=title)

    def close(self) -> None:
        """Write the lines that are left, and flush TensorBoard's file."""
        self._write_lines()
        with warn_on_write_error("TensorBoard points"):
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
                # The file is closed after each write, so that a killed run loses no line.
                append(self._metrics, b"".join(self._unwritten))
                self._unwritten = []

    def _remember_loss(self, record: dict) -> None:
        if "loss" in record:
            loss = math.nan if record["loss"] is None else record["loss"]
            self._losses.append((record["step"], loss))


def _to_json(value: SupportsFloat | np.ndarray) -> float | list[float | None] | None:
    """A number or a row of numbers, with None for what is not finite."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [float(x) if math.isfinite(x) else None for x in value]
    number = float(value)
    return number if math.isfinite(number) else None


def _curves(values: Mapping[str, SupportsFloat | np.ndarray]) -> dict[str, float]:
    """The point of each TensorBoard curve. Bands without an example have none."""
    points: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.ndim:
            points |= {f"{name}/{i}": float(x) for i, x in enumerate(value) if math.isfinite(x)}
        else:
            points[name] = float(value)
    return points


class TensorBoardWriter:
    """Write TensorBoard events with tensorboardX's RecordWriter, which starts no thread.

    After a failed write the file is truncated to its last flush, and the next write opens a new
    file.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder = folder
        self._last_flush = 0.0
        self._flushed_size = 0
        self._writer: RecordWriter | None = None
        self._purge_step: int | None = start_step + 1 if start_step > 0 else 0

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a point to each curve. An OSError also loses the points since the last flush."""
        # Imported late: reading metrics needs no TensorBoard.
        from tensorboardX.summary import scalar

        # tensorboardX would warn of a NaN that the reporter has already reported.
        with log_level(logging.ERROR, "tensorboardX.x2num"):
            summaries = [scalar(name, number) for name, number in numbers.items()]
        self._write(*({"step": step, "summary": summary} for summary in summaries))

    def image(self, step: int, name: str, picture: Image.Image) -> None:
        """Add a picture under this name. An OSError also loses the points since the last flush."""
        from tensorboardX.summary import image

        pixels = np.asarray(picture.convert("RGB"))  # (h, w, 3)
        self._write({"step": step, "summary": image(name, pixels, dataformats="HWC")})

    def close(self) -> None:
        """Flush and close the file if open. An OSError loses the points since the last flush."""
        if self._writer is not None:
            with self._truncate_on_failure():
                self._writer.flush()
                self._writer.close()
            self._writer = None

    def _write(self, *events: dict) -> None:
        from tensorboardX.proto.event_pb2 import Event

        writer = self._writer or self._open()
        with self._truncate_on_failure():
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            if time.monotonic() - self._last_flush > FLUSH_SECONDS:
                writer.flush()
                self._flushed_size = self._path.stat().st_size
                self._last_flush = time.monotonic()

    @contextmanager
    def _truncate_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # Close the file even if its buffer cannot be written. Otherwise the buffer would be
            # written later, after the truncated end.
            if self._writer is not None:
                with suppress(OSError):
                    self._writer.close()
            self._writer = None
            os.truncate(self._path, self._flushed_size)
            if not self._flushed_size:
                self._path.unlink()
            raise

    def _open(self) -> "RecordWriter":
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        self._path = self._folder / f"events.out.tfevents.{time.time_ns()}"
        self._flushed_size = 0
        self._last_flush = 0.0
        self._writer = RecordWriter(str(self._path))
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        with self._truncate_on_failure():
            self._writer.write(first.SerializeToString())
        if self._purge_step is not None:
            # At the start of a session TensorBoard drops the points of this and later steps.
            start = SessionLog(status=SessionLog.START)
            self._write({"step": self._purge_step, "session_log": start})
            self._purge_step = None
        return self._writer


class NullLog:
    """The log of the other hosts, which writes nothing."""

    def scalars(self, step: int, values: Mapping[str, SupportsFloat | np.ndarray]) -> None: ...

    def image(self, step: int, name: str, picture: Image.Image) -> None: ...

    def curve(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def warn_on_write_error(description: str) -> Iterator[None]:
    """Report an error of the block in one line on stderr, and continue after the block."""
    try:
        yield
    # The user's own settings make matplotlib raise errors of many types.
    except Exception as error:
        reason = one_line(error).rstrip(".")
        print(f"Could not write {description}, training continues: {reason}.", file=sys.stderr)


def append(path: Path, lines: bytes) -> None:
    """Append lines to a file. On an OSError the file stays as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(lines)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The objects of a metrics.jsonl in the order of its lines.

    Non-finite numbers are None. An incomplete last line is left out, because a run may be writing
    it. Raise FileNotFoundError if there is no file, and ValueError with the line's number if
    another line is not an object with a step.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no metrics file at '{path}': give the metrics.jsonl of a run's directory."
        )
    return [record for _, record in _read_lines(path)]


def _read_lines(path: Path) -> Iterator[tuple[bytes, dict]]:
    """Yield each line with its newline, and its object. An incomplete last line is left out."""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            _ = record["step"] + 0
        except (ValueError, TypeError, KeyError):
            # Only the last line can lack its newline.
            if not line.endswith(b"\n"):
                return
            raise ValueError(
                f"Line {number} of '{path}' is not an object with a step: repair or remove it."
            ) from None
        yield line if line.endswith(b"\n") else line + b"\n", record


def _remove_after(path: Path, step: int) -> None:
    """Remove the lines of later steps from a metrics.jsonl."""
    lines = [line for line, record in _read_lines(path) if record["step"] <= step]
    with atomic_file(path) as file:
        file.writelines(lines)
