"""Images from parquet files or from the Hugging Face hub.

Both arrive as one Arrow table, whose image column holds encoded images: binary, or struct {bytes, path}.
The encoded bytes of parquet files are read into memory; those from the hub stay memory-mapped in its cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.data import DataSource, ImageSet, load_or_stream
from ddpm_jax.data.decode import decode_image

if TYPE_CHECKING:
    import pyarrow as pa

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(?<!\.parquet)")
SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
SECONDS_TO_ANSWER = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(DataSource):
    """The images of a parquet file, of a folder of parquet files, or of a data set on the Hugging Face hub.

    Integers in a column `label` or `labels` become the labels.
    """

    path: str
    """A parquet file, a folder of parquet files, or a hub id such as owner/name; what exists on disk comes first."""
    split: str = "train"
    """Which part of the data set; a single parquet file is taken whole."""
    image_column: str | None = None
    """The column that holds the images; None where there is only one."""

    def describe(self) -> str:
        return f"huggingface: {self.path}, split {self.split}"

    def load(self, image_size: int, channels: int) -> ImageSet:
        table = self.table()
        if not len(table):
            raise ValueError(f"{self.path} has no rows: give a data set with images")

        def decode(i: int) -> np.ndarray:
            file, name = image_source(table[0][i].as_py()), f"in row {i} (from 0) of {self.path}"
            return decode_image(file, name, image_size, channels, self.resize)

        size = image_size**2 * channels
        return load_or_stream(
            len(table),
            decode,
            labels(table, self.path),
            size,
            self.describe(),
            self.max_corrupt_fraction,
        )

    def table(self) -> pa.Table:
        """Column 0 holds the encoded images; column 1, if any, integer labels."""
        local = Path(self.path).expanduser()
        exists = os.path.exists(local)  # where a folder above is locked, Path.exists raises
        if exists:
            table = parquet_table(parquet_files(local, self.split), self.image_column)
        elif HUB_ID.fullmatch(self.path):
            table = hub_table(self.path, self.split)
            table = table.select(choose_columns(table.schema, self.image_column, self.path))
        else:
            raise FileNotFoundError(
                f"{self.path} does not exist or is locked, and is no hub id such as owner/name: check the path"
            )
        refuse_missing(table[0], self.path, embedded=exists)
        return table


def parquet_files(path: Path, split: str) -> list[Path]:
    """`path`, if it is a file; else the parquet files under it, sorted, whose path under it has the word `split`.

    Where no path has the word of any split, all files are the split `train`.
    """
    if path.is_file():
        return [path]
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.parquet")}
    words = {name: set(re.split(r"[^a-z0-9]+", name.lower())) for name in files}
    chosen = sorted(name for name in files if split.lower() in words[name])
    if not chosen and split == "train" and not SPLITS & set().union(*words.values()):
        chosen = sorted(files)
    if not chosen:
        cause = f"there are {', '.join(sorted(files)[:5])}" if files else "there are none at all"
        remedy = (
            "give another split or one of the files"
            if files
            else "for image files use the folder source"
        )
        raise FileNotFoundError(
            f"no parquet files of split {split!r} under {path} ({cause}): {remedy}"
        )
    return [files[name] for name in chosen]


def parquet_table(files: list[Path], image_column: str | None) -> pa.Table:
    """The image column, and the labels if any, of all `files` in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                parts.append(
                    parquet.read(choose_columns(parquet.schema_arrow, image_column, str(file)))
                )
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"cannot read {file} as parquet ({one_line(error)}): replace it by a sound file"
            ) from error
        if parts[-1].schema != parts[0].schema:
            raise ValueError(
                f"{file} and {files[0]} have other columns or types: give one of them as the path"
            )
    return pa.concat_tables(parts)


def choose_columns(schema: pa.Schema, image_column: str | None, name: str) -> list[str]:
    """Names of the image column and, if there are any, of the integer labels."""
    import pyarrow as pa

    images = [field.name for field in schema if holds_images(field.type)]
    if image_column is not None and image_column not in images:
        raise ValueError(
            f"{name} has no image column {image_column!r}: its image columns are {images or 'none'}"
        )
    if image_column is None and len(images) != 1:
        remedy = (
            "name one by image_column"
            if images
            else f"its columns {schema.names} hold no encoded images"
        )
        raise ValueError(f"{name} has {len(images)} image columns {images}: {remedy}")
    numbers = [
        key
        for key in ("label", "labels")
        if key in schema.names and pa.types.is_integer(schema.field(key).type)
    ]
    return [image_column or images[0], *numbers[:1]]


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images: binary, or a struct with binary `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def refuse_missing(images: pa.ChunkedArray, name: str, embedded: bool) -> None:
    """ValueError that names the first row without an image; a path in place of the bytes will do if not `embedded`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fields = [field.name for field in images.type] if pa.types.is_struct(images.type) else []
    missing = pc.is_null(pc.struct_field(images, "bytes") if fields else images)
    if "path" in fields:
        paths = pc.struct_field(images, "path")
        missing = missing if embedded else pc.and_(missing, pc.is_null(paths))
    row = pc.index(missing, True).as_py()
    if row < 0:
        return
    if "path" in fields and paths[row].is_valid:
        raise ValueError(
            f"row {row} (from 0) of {name} holds only the path {paths[row].as_py()!r}, the pixels were not embedded: "
            "write the parquet file with its images embedded, or use the folder source on the image files"
        )
    raise ValueError(f"row {row} (from 0) of {name} has no image: remove such rows")


def image_source(record: bytes | dict) -> io.BytesIO | str:
    """The file of one image: its bytes, or the path of a file in the hub's cache."""
    if isinstance(record, dict):
        return record["path"] if record["bytes"] is None else io.BytesIO(record["bytes"])
    return io.BytesIO(record)


def labels(table: pa.Table, name: str) -> np.ndarray | None:
    """int32 (n,) of column 1, or None if there is none."""
    if table.num_columns == 1:
        return None
    if table[1].null_count:
        raise ValueError(
            f"{table[1].null_count} rows of {name} have no {table.column_names[1]}: fill or remove them"
        )
    return table[1].to_numpy().astype(np.int32)


def hub_table(path: str, split: str) -> pa.Table:
    """A split of a data set on the hub, downloaded into the cache of the package `datasets`."""
    try:
        from datasets import config, load_dataset
    except ImportError as error:
        raise ValueError(
            f"{path} is no file or folder here, and the Hugging Face hub needs the package datasets ({error}): "
            "pip install 'ddpm_jax[huggingface]', or give a local parquet file, or use the folder source"
        ) from error
    if not config.HF_HUB_OFFLINE and not answers(config.HF_ENDPOINT):
        raise ValueError(
            f"{path} is no file or folder here, and {config.HF_ENDPOINT} does not answer: check the network, set "
            "HF_HUB_OFFLINE=1 to use what was downloaded before, or give a local parquet file"
        )
    try:
        return load_dataset(path, split=split).with_format("arrow")[:]
    except (
        Exception
    ) as error:  # not found, no such split, gated, several configurations, connection lost, ...
        raise ValueError(
            f"cannot load {path}, split {split}, from the Hugging Face hub ({one_line(error)}): "
            "check the name and the split, or give a local parquet file"
        ) from error


def answers(url: str) -> bool:
    """Whether a server answers at `url` within SECONDS_TO_ANSWER; `datasets` itself would retry for half a minute.

    Asked as the download will ask (same proxy and certificates), and in a thread, because the timeout of a
    connection does not bound the look-up of a name.
    """
    from huggingface_hub.utils import get_session

    heard = []

    def ask() -> None:
        with contextlib.suppress(
            Exception
        ):  # the HTTP library, and so its error, depends on huggingface_hub's version
            heard.append(get_session().head(url, timeout=SECONDS_TO_ANSWER))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return bool(heard)


def one_line(error: Exception) -> str:
    """The message of `error` without line breaks, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
