"""Log a run through crashes, resumes and NaN: metrics.jsonl, TensorBoard and loss.png."""

import json
import math
import struct
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from helpers.file_limits import no_file_above
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from ddpm_jax.runs.metrics import RunLog, read_metrics

TEN = b'{"step": 10, "loss": 0.5}\n'
# Another program may have written a line: it must stay byte for byte.
TWENTY = b'{"loss":0.25,  "step": 20}\n'
THIRTY = b'{"step": 30, "loss": 0.125}\n'


def events(folder) -> list[Event]:
    """All events in TensorBoard's order, read from TFRecords whose checksums are verified."""
    result = []
    for path in sorted((folder / "tensorboard").glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            # length (8 bytes), its checksum (4), payload, its checksum (4)
            (length,) = struct.unpack("<Q", data[:8])
            (length_checksum,) = struct.unpack("<I", data[8:12])
            payload = data[12 : 12 + length]
            (payload_checksum,) = struct.unpack("<I", data[12 + length : 16 + length])
            assert length_checksum == masked_crc32c(data[:8])
            assert payload_checksum == masked_crc32c(payload)
            result.append(Event.FromString(payload))
            data = data[16 + length :]
    return result


def shown(folder, tag) -> list[tuple[int, float]]:
    """Points (step, value) of a curve as TensorBoard shows it.

    A session start removes the points of its step and later.
    """
    points = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            points = [(step, value) for step, value in points if step < event.step]
        values = [value for value in event.summary.value if value.tag == tag]
        points += [(event.step, value.simple_value) for value in values]
    return points


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_scalars_are_in_the_file_at_once_and_in_tensorboard_at_the_end(tmp_path):
    workdir = tmp_path / "new" / "run"
    with RunLog(workdir) as log:
        log.scalars(10, {"loss": 0.5, "grad_norm": np.float32(2)})
        line = b'{"step": 10, "loss": 0.5, "grad_norm": 2.0}\n'
        assert (workdir / "metrics.jsonl").read_bytes() == line
        log.scalars(20, {"loss": 0.25})
    assert read_metrics(workdir / "metrics.jsonl") == [
        {"step": 10, "loss": 0.5, "grad_norm": 2.0},
        {"step": 20, "loss": 0.25},
    ]
    assert shown(workdir, "loss") == [(10, 0.5), (20, 0.25)]
    assert shown(workdir, "grad_norm") == [(10, 2.0)]


def test_a_row_of_numbers_has_a_curve_for_each_number_that_is_finite(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(10, {"loss_bands": np.array([0.5, np.nan, 2.0])})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss_bands": [0.5, None, 2.0]}
    ]
    curves = [shown(tmp_path, f"loss_bands/{i}") for i in range(3)]
    assert curves == [[(10, 0.5)], [], [(10, 2.0)]]


def test_an_exception_in_the_block_loses_no_point(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path) as log:
        log.scalars(1, {"loss": 1.0})
        raise KeyboardInterrupt
    assert shown(tmp_path, "loss") == [(1, 1.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_is_null_in_json_and_itself_in_tensorboard(tmp_path, value):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"loss": value, "lr": 0.5})
        log.scalars(2, {"loss": 0.5})
        log.curve()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail) == {"step": 1, "loss": None, "lr": 0.5}
    np.testing.assert_equal(shown(tmp_path, "loss"), [(1, value), (2, 0.5)])


def test_a_value_called_step_is_refused(tmp_path):
    with RunLog(tmp_path) as log, pytest.raises(ValueError, match="rename it"):
        log.scalars(1, {"step": 2.0})
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TEN + TWENTY + THIRTY, TEN + TWENTY),
        (TEN + TWENTY, TEN + TWENTY),
        # A crash cut off the last line.
        (TEN + TWENTY + THIRTY[:12], TEN + TWENTY),
        # A power failure can leave zeros.
        (TEN + TWENTY + b"\0" * 20, TEN + TWENTY),
        # Only the newline is missing, so the line is complete.
        (TEN + TWENTY[:-1], TEN + TWENTY),
        (THIRTY + TEN, TEN),
        (b"", b""),
    ],
)
def test_resume_keeps_the_lines_up_to_its_checkpoint(tmp_path, before, after):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before)
    with RunLog(tmp_path, start_step=20) as log:
        assert path.read_bytes() == after
        log.scalars(30, {"loss": 1.0})
    assert path.read_bytes() == after + b'{"step": 30, "loss": 1.0}\n'
    assert names(tmp_path) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize(
    "broken", [b"\n", b"{oops}\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": null}\n', b"\xff\n"]
)
def test_a_broken_line_is_named_and_no_file_is_changed(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(TEN + broken + THIRTY)
    with pytest.raises(ValueError, match=r"Line 2 of .*metrics\.jsonl"):
        RunLog(tmp_path, start_step=20)
    with pytest.raises(ValueError, match="Line 2"):
        read_metrics(path)
    assert path.read_bytes() == TEN + broken + THIRTY
    assert names(tmp_path) == ["metrics.jsonl"]


def test_a_fresh_start_renames_older_metrics(tmp_path):
    for value in (1.0, 2.0, 3.0):
        with RunLog(tmp_path) as log:
            log.scalars(0, {"loss": value})
    files = [name for name in names(tmp_path) if name.endswith("jsonl")]
    losses = {name: read_metrics(tmp_path / name)[0]["loss"] for name in files}
    assert losses == {"metrics-1.jsonl": 1.0, "metrics-2.jsonl": 2.0, "metrics.jsonl": 3.0}
    assert shown(tmp_path, "loss") == [(0, 3.0)]


def test_a_resume_within_the_same_second_repeats_no_tensorboard_point(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.scalars(step, {"loss": step / 8})
    with RunLog(tmp_path, start_step=20) as log:
        for step in (30, 40):
            log.scalars(step, {"loss": step / 16})
    assert shown(tmp_path, "loss") == [(10, 1.25), (20, 2.5), (30, 1.875), (40, 2.5)]
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [10, 20, 30, 40]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tensorboard_images_equal_the_pictures_pixel_for_pixel(tmp_path, mode):
    shape = (9, 7) if mode == "L" else (9, 7, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    with RunLog(tmp_path) as log:
        log.image(5, "samples/ema", picture)
    (event,) = (event for event in events(tmp_path) if event.summary.value)
    (value,) = event.summary.value
    assert (event.step, value.tag) == (5, "samples/ema")
    (tmp_path / "seen.png").write_bytes(value.image.encoded_image_string)
    with Image.open(tmp_path / "seen.png") as seen:
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(picture.convert("RGB")))


def test_curve_is_the_same_after_a_resume(tmp_path):
    resumed = tmp_path / "a" / "run"
    uninterrupted = tmp_path / "b" / "run"
    for workdir, stops in ((resumed, (0, 20, 40)), (uninterrupted, (0, 40))):
        for start, stop in pairwise(stops):
            with RunLog(workdir, start) as log:
                for step in range(start + 1, stop + 1):
                    log.scalars(step, {"loss": 1 / step})
                log.scalars(stop, {"fid": 3.0})
                log.curve()
    pictures = []
    for workdir in (resumed, uninterrupted):
        with Image.open(workdir / "loss.png") as picture:
            pictures.append(np.asarray(picture))
    np.testing.assert_array_equal(*pictures)


def test_no_curve_without_a_loss(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"fid": 3.0})
        log.curve()
    assert not (tmp_path / "loss.png").exists()


def test_read_metrics_ignores_an_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(TEN + THIRTY[:12])
    assert read_metrics(str(path)) == [{"step": 10, "loss": 0.5}]
    assert path.read_bytes() == TEN + THIRTY[:12]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give the metrics\.jsonl of a run's directory"):
        read_metrics(tmp_path)


def test_a_full_disk_loses_only_the_points_since_the_last_flush(tmp_path, monkeypatch, capsys):
    """The truncated file and the next one are both readable, record by record."""
    seconds = "ddpm_jax.runs.metrics.FLUSH_SECONDS"
    with RunLog(tmp_path) as log:
        # The first point is flushed, the second is not yet.
        for step, wait in ((1, 0), (2, 1000)):
            monkeypatch.setattr(seconds, wait)
            log.scalars(step, {"loss": 0.5})
        (file,) = (tmp_path / "tensorboard").iterdir()
        size = file.stat().st_size
        monkeypatch.setattr(seconds, 0)
        with no_file_above(size):
            log.scalars(3, {"loss": 0.5})
        assert file.stat().st_size == size
        log.scalars(4, {"loss": 0.5})
    assert "Could not write TensorBoard points" in capsys.readouterr().err
    assert [step for step, _ in shown(tmp_path, "loss")] == [1, 4]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_the_users_settings_of_matplotlib_do_not_end_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with matplotlib.rc_context({"text.usetex": True}), RunLog(tmp_path) as log:
        log.scalars(10, {"loss": 0.5})
        log.curve()
    message = capsys.readouterr().err
    assert message.startswith("Could not write loss.png, training continues: Failed to process")
    assert message.count("\n") == 1


def test_a_failed_write_is_reported_and_the_log_continues(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ddpm_jax.runs.metrics.FLUSH_SECONDS", 0)
    with RunLog(tmp_path) as log:
        log.scalars(10, {"loss": 0.5})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with no_file_above(size + 5):
            log.scalars(20, {"loss": 0.25})
            log.image(20, "samples", Image.new("RGB", (4, 4)))
            log.curve()
        stderr = capsys.readouterr().err
        for name in ("metrics.jsonl", "TensorBoard points", "a TensorBoard image", "loss.png"):
            assert f"{name}, training continues: [Errno 27] File too large" in stderr
        assert stderr.count("Could not write ") == stderr.count("training continues")
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
        assert not (tmp_path / "loss.png").exists()
        log.scalars(30, {"loss": 0.125})
        log.curve()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    assert shown(tmp_path, "loss") == [(10, 0.5), (30, 0.125)]
    assert (tmp_path / "loss.png").exists()
