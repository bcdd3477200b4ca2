"""Images from parquet files or from the Hugging Face hub.

Both arrive as one Arrow table, whose image column is binary or a struct {bytes, path}. The encoded
images of parquet files are read into memory; images from the hub stay memory-mapped in its cache.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.data import SPLITS, DataSource, ImageSet
from ddpm_jax.data._network import is_reachable
from ddpm_jax.data.loading import load_or_stream

if TYPE_CHECKING:
    import pyarrow as pa

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(?<!\.parquet)")
PROBE_SECONDS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(DataSource):
    """Images of a parquet file, a folder of parquet files, or a data set on the Hugging Face hub.

    A column `label` or `labels` of integers holds the labels.
    """

    path: str
    """A parquet file, a folder of parquet files, or else a hub repository owner/name."""
    split: str = "train"
    """Split of the data set. Ignored for a single parquet file."""
    image_column: str | None = None
    """Column of the images; None for the only one."""

    def describe(self) -> str:
        return f"huggingface: {self.path}, split {self.split}"

    def load(self, image_size: int, channels: int) -> ImageSet:
        table = self.table()
        if not len(table):
            raise ValueError(f"{self.path} has no rows: give a data set with images.")

        def decode(i: int) -> np.ndarray:
            file = image_source(table[0][i].as_py())
            name = f"in row {i} (from 0) of {self.path}"
            return self.decode(file, name, image_size, channels)

        return load_or_stream(
            len(table),
            decode,
            read_labels(table, self.path),
            image_size**2 * channels,
            self.describe(),
            self.max_corrupt_fraction,
            class_names(table.schema),
        )

    def table(self) -> pa.Table:
        """The data: column 0 holds encoded images, column 1, if there is one, integer labels."""
        local = Path(self.path).expanduser()
        # Path.exists would raise if a parent folder is locked.
        is_local = os.path.exists(local)
        if is_local:
            table = parquet_table(parquet_files(local, self.split), self.image_column)
        elif HUB_ID.fullmatch(self.path):
            table = hub_table(self.path, self.split)
            table = table.select(choose_columns(table.schema, self.image_column, self.path))
        else:
            raise FileNotFoundError(
                f"{self.path} does not exist or is locked, and is not a hub repository owner/name: "
                "check the path."
            )
        check_images_present(table[0], self.path, embedded=is_local)
        return table


def parquet_files(path: Path, split: str) -> list[Path]:
    """The file `path`, or the sorted parquet files of a split in the folder `path`.

    A file belongs to `split` if its relative path contains that word. If no relative path contains
    the name of any split, all files belong to `train`. Raise FileNotFoundError if there is no file.
    """
    if path.is_file():
        return [path]
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.parquet")}
    words = {name: set(re.split(r"[^a-z0-9]+", name.lower())) for name in files}
    chosen = sorted(name for name in files if split.lower() in words[name])
    if not chosen and split == "train" and not SPLITS & set().union(*words.values()):
        chosen = sorted(files)
    if not chosen:
        if files:
            cause = f"there are {', '.join(sorted(files)[:5])}"
            remedy = "give another split or one of the files"
        else:
            cause = "there are none at all"
            remedy = "for image files use the folder source"
        raise FileNotFoundError(
            f"No parquet files of split {split!r} under {path} ({cause}): {remedy}."
        )
    return [files[name] for name in chosen]


def parquet_table(files: list[Path], image_column: str | None) -> pa.Table:
    """Read the image column, and the labels if there are any, of all `files` in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                columns = choose_columns(parquet.schema_arrow, image_column, str(file))
                parts.append(parquet.read(columns))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"Cannot read {file} as parquet ({one_line(error)}): replace the file."
            ) from error
        if parts[-1].schema != parts[0].schema:
            raise ValueError(
                f"{file} and {files[0]} have different columns or types: "
                "give one of them as the path."
            )
    return pa.concat_tables(parts)


def choose_columns(schema: pa.Schema, image_column: str | None, name: str) -> list[str]:
    """The names of the image column and of the integer labels, if there are any.

    Raise ValueError unless `image_column`, or exactly one column if it is None, can hold images.
    """
    import pyarrow as pa

    images = [field.name for field in schema if holds_images(field.type)]
    if image_column is not None and image_column not in images:
        raise ValueError(
            f"{name} has no image column {image_column!r}: "
            f"its image columns are {images or 'none'}."
        )
    if image_column is None and len(images) != 1:
        if images:
            remedy = "choose one with --data.image-column"
        else:
            remedy = f"its columns {schema.names} hold no encoded images"
        raise ValueError(f"{name} has {len(images)} image columns {images}: {remedy}.")
    labels = [
        key
        for key in ("label", "labels")
        if key in schema.names and pa.types.is_integer(schema.field(key).type)
    ]
    return [image_column or images[0], *labels[:1]]


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images.

    It can if it is binary, or a struct with a binary field `bytes`.
    """
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def check_images_present(images: pa.ChunkedArray, name: str, embedded: bool) -> None:
    """Raise ValueError for the first row without an image.

    A row may hold the path of a file instead of its bytes, unless `embedded` is set.
    """
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
            f"Row {row} (from 0) of {name} holds only the path {paths[row].as_py()!r}, no pixels: "
            "write the parquet file with its images embedded, "
            "or use the folder source on the image files."
        )
    raise ValueError(f"Row {row} (from 0) of {name} has no image: remove such rows.")


def image_source(record: bytes | dict) -> io.BytesIO | str:
    """The encoded image of a record: its bytes, or the path of a file in the hub's cache."""
    if not isinstance(record, dict):
        return io.BytesIO(record)
    if record["bytes"] is None:
        return record["path"]
    return io.BytesIO(record["bytes"])


def read_labels(table: pa.Table, name: str) -> np.ndarray | None:
    """The labels in column 1 as int32 (n,); None without that column."""
    if table.num_columns == 1:
        return None
    if table[1].null_count:
        raise ValueError(
            f"{table[1].null_count} rows of {name} have no {table.column_names[1]}: "
            "add the labels or remove the rows."
        )
    return table[1].to_numpy().astype(np.int32)


def class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """The names of the labels in column 1, if the metadata that `datasets` writes holds them."""
    if len(schema) == 1:
        return None
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(schema.names[1], {})
    names = feature.get("names")
    return tuple(names) if names else None


def hub_table(path: str, split: str) -> pa.Table:
    """Download a split of a data set from the hub into the cache of the package `datasets`."""
    try:
        from datasets import config, load_dataset
    except ImportError as error:
        raise ValueError(
            f"{path} is not a local file or folder, and the Hugging Face hub needs the package "
            f"datasets ({error}): pip install 'ddpm_jax[huggingface]', give a local parquet file, "
            "or use the folder source."
        ) from error
    if not config.HF_HUB_OFFLINE and not server_answers(config.HF_ENDPOINT):
        raise ValueError(
            f"{path} is not a local file or folder, and {config.HF_ENDPOINT} does not answer: "
            "check the network, set HF_HUB_OFFLINE=1 to use an earlier download, "
            "or give a local parquet file."
        )
    try:
        return load_dataset(path, split=split).with_format("arrow")[:]
    # The causes have many types: no such data set or split, access denied, connection lost, ...
    except Exception as error:
        raise ValueError(
            f"Cannot load {path}, split {split}, from the Hugging Face hub ({one_line(error)}): "
            "check the name and the split, or give a local parquet file."
        ) from error


def server_answers(url: str) -> bool:
    """Whether a server answers at `url` within `PROBE_SECONDS`.

    `datasets` itself would retry for half a minute. The request uses the session of the download,
    and thus its proxy and certificates.
    """
    from huggingface_hub.utils import get_session

    return is_reachable(lambda: get_session().head(url, timeout=PROBE_SECONDS), PROBE_SECONDS)


def one_line(error: Exception) -> str:
    """The message of `error` on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
