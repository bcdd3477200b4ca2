"""Images from parquet files or from the Hugging Face hub.

Both arrive as one Arrow table, whose image column is binary or a struct {bytes, path}. The encoded
images of parquet files are read into memory; images from the hub stay memory-mapped in its cache.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax import home
from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data._network import is_reachable
from ddpm_jax.data.array_files import check_finite
from ddpm_jax.data.captions import check_caption, only_texts
from ddpm_jax.data.labels import choose_labels, class_labels, first_of, is_text
from ddpm_jax.data.loading import load_or_stream
from ddpm_jax.data.parquet_files import parquet_files, read_parquet
from ddpm_jax.data.vectors import read_vectors
from ddpm_jax.errors import check, one_line
from ddpm_jax.image_size import ImageSize, sides

if TYPE_CHECKING:
    import pyarrow as pa

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(?<!\.parquet)")
IMAGE_NAMES = ("image", "img", "images")
"""Names of columns that usually hold the images to train on, the most likely first."""
MAX_HASH_BYTES = 64
"""Columns of this fixed width or less hold hashes or ids, not images."""
PROBE_SECONDS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(DataSource):
    """Images of a parquet file, a folder of parquet files, or a data set on the Hugging Face hub.

    Labels are integers, whole floats, booleans or strings. Images whose label is null, NaN or -1
    are unlabeled.
    """

    path: str
    """A parquet file, a folder of parquet files, or else a hub repository owner/name."""
    split: str = "train"
    """Split of the data set. Ignored for a single parquet file."""
    image_column: str | None = None
    """Column of the images; None for the only one, or else image, img or images."""
    label_column: str | None = None
    """Column of the labels; None for label, fine_label, class, ... if there is one; '' for none."""
    caption_column: str | None = None
    """Column of the captions, such as text; None for no captions."""
    condition_columns: tuple[str, ...] = ()
    """Columns of numbers, or of lists of numbers, that are the vector of condition vector."""

    def __post_init__(self):
        super().__post_init__()
        check(
            bool(self.condition_columns) == (self.condition == "vector"),
            "data.condition vector and data.condition_columns go together: set both or neither.",
        )

    def describe(self) -> str:
        split = f", split {self.split}" if self.has_splits else ""
        return f"huggingface: {self.path}{split}"

    @property
    def has_splits(self) -> bool:
        # A home directory that is unknown is no error here.
        return not os.path.isfile(os.path.expanduser(self.path))

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        table = self.table()
        if not len(table):
            raise ValueError(f"{self.path} has no rows: give a data set with images.")
        images = table[0]
        # The paths in a parquet file lead to files on the computer that wrote it.
        captions = None
        if self.caption_column is not None:
            captions = only_texts(table[self.caption_column].to_pylist())
        vectors = None
        if self.condition_columns:
            vectors = read_vectors(table, self.condition_columns, self.path)
        missing = rows_without_image(images, paths_count=not self.is_local())
        if missing and not self.max_corrupt_fraction:
            raise missing_image(images, min(missing), self.path)

        def decode(i: int) -> np.ndarray:
            if i in missing:
                raise missing_image(images, i, self.path)
            name = f"in row {i} (from 0) of {self.path}"
            check_caption(captions, i, name)
            if vectors is not None:
                check_finite(vectors[i], f"{name}, in its condition,")
            file = image_source(images[i].as_py())
            return self.decode(file, name, image_size, channels)

        others = (self.caption_column, *self.condition_columns)
        labels, classes = read_labels(table, self.path, others)
        return load_or_stream(
            len(table),
            decode,
            labels,
            math.prod(sides(image_size)) * channels,
            self.describe(),
            self.max_corrupt_fraction,
            classes,
            captions,
            vectors,
        )

    def is_local(self) -> bool:
        """Whether `path` is a file or folder."""
        # Path.exists would raise if a parent folder is locked.
        return os.path.exists(home.expand(self.path))

    def table(self) -> pa.Table:
        """The data: encoded images in column 0, labels in column 1, then captions, conditions."""
        choose = partial(
            choose_columns,
            image=self.image_column,
            label=self.label_column,
            caption=self.caption_column,
            condition=self.condition_columns,
        )
        if self.is_local():
            return read_parquet(parquet_files(home.expand(self.path), self.split), choose)
        if HUB_ID.fullmatch(self.path):
            table = hub_table(self.path, self.split)
            return table.select(choose(table.schema, self.path))
        raise FileNotFoundError(
            f"{self.path} does not exist or is locked, and is not a hub repository owner/name: "
            "check the path."
        )


def choose_columns(
    schema: pa.Schema,
    name: str,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    condition: tuple[str, ...] = (),
) -> list[str]:
    """The names of the image column, and of the label, caption and condition columns if any.

    Without a name, choose the most likely column, and print it to stderr if others are possible.
    Raise ValueError unless the caption column holds texts and the condition columns exist.
    """
    images = choose_images(schema, name, image)
    texts = [field.name for field in schema if is_text(field.type)]
    if caption is not None and caption not in texts:
        raise ValueError(
            f"{name} has no captions {caption!r}: choose --data.caption-column among "
            f"{', '.join(texts) or 'columns of texts, of which there are none'}."
        )
    taken = {caption, *condition}
    others = [
        field.name for field in schema if not holds_images(field.type) and field.name not in taken
    ]
    unknown = [column for column in condition if column not in schema.names]
    check(
        not unknown,
        f"{name} has no column {', '.join(map(repr, unknown))}: choose --data.condition-columns "
        f"among {', '.join(others) or 'its other columns, of which there are none'}.",
    )
    declared = [column for column in declared_classes(schema) if column in others]
    labels = choose_labels(label, others, declared, name, "--data.label-column")
    return [column for column in (images, labels, caption, *condition) if column]


def choose_images(schema: pa.Schema, name: str, requested: str | None) -> str:
    """The image column `requested`; if it is None, the only one, or else one of `IMAGE_NAMES`.

    Raise ValueError with the names of the image columns if there is none.
    """
    images = [field.name for field in schema if holds_images(field.type)]
    if requested is not None:
        if requested in images:
            return requested
        raise ValueError(
            f"{name} has no image column {requested!r}: its image columns are {images or 'none'}."
        )
    likely = [column for column in IMAGE_NAMES if column in images]
    if likely or len(images) == 1:
        ordered = list(dict.fromkeys([*likely, *images]))
        return first_of(ordered, f"images of {name}", "--data.image-column")
    if images:
        remedy = "choose one with --data.image-column"
    else:
        remedy = f"its columns {schema.names} hold no encoded images"
    raise ValueError(f"{name} has {len(images)} image columns {images}: {remedy}.")


def declared_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """{column: class names} of the columns that the package `datasets` marks as class labels."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    # Other programs may write anything into the metadata.
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images.

    It can if it is binary, or a struct with a binary field `bytes`.
    """
    from pyarrow import types

    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_fixed_size_binary(kind):
        return kind.byte_width > MAX_HASH_BYTES
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def rows_without_image(images: pa.ChunkedArray, paths_count: bool) -> set[int]:
    """The rows that hold no image, or only the path of one unless `paths_count` is set."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fields = [field.name for field in images.type] if pa.types.is_struct(images.type) else []
    missing = pc.is_null(pc.struct_field(images, "bytes") if fields else images)
    if "path" in fields and paths_count:
        missing = pc.and_(missing, pc.is_null(pc.struct_field(images, "path")))
    return set(np.flatnonzero(missing.to_numpy()).tolist())


def missing_image(images: pa.ChunkedArray, row: int, name: str) -> ValueError:
    """The error for a row without an image."""
    record = images[row].as_py()
    if record and record.get("path"):
        return ValueError(
            f"Row {row} (from 0) of {name} holds only the path {record['path']!r}, no pixels: "
            "write the parquet file with its images embedded, "
            "or use the folder source on the image files."
        )
    return ValueError(f"Row {row} (from 0) of {name} has no image: remove such rows.")


def image_source(record: bytes | dict) -> io.BytesIO | str:
    """The encoded image of a record: its bytes, or the path of a file in the hub's cache."""
    if not isinstance(record, dict):
        return io.BytesIO(record)
    if record["bytes"] is None:
        return record["path"]
    return io.BytesIO(record["bytes"])


def read_labels(
    table: pa.Table, name: str, others: tuple[str | None, ...] = ()
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The labels in column 1 as int32 (n,), and the names of their classes, if there are any.

    `others` names the columns that hold no labels.
    """
    column = next((column for column in table.column_names[1:] if column not in others), None)
    if column is None:
        return None, None
    described = f"The values in column {column!r} of {name}"
    labels, classes = class_labels(table[1], described, "--data.label-column")
    return labels, classes or declared_classes(table.schema).get(column)


def hub_table(path: str, split: str) -> pa.Table:
    """Download a split of a data set from the hub into the cache of the package `datasets`."""
    home.provide_hub_cache()
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
            f"Cannot load {path}, split {split}, from the Hugging Face hub "
            f"({one_line(error).rstrip('.')}): "
            "check the name and the split, or give a local parquet file."
        ) from error


def server_answers(url: str) -> bool:
    """Whether a server answers at `url` within `PROBE_SECONDS`.

    `datasets` itself would retry for half a minute. The request uses the session of the download,
    and thus its proxy and certificates.
    """
    from huggingface_hub.utils import get_session

    return is_reachable(lambda: get_session().head(url, timeout=PROBE_SECONDS), PROBE_SECONDS)
