"""Images of the TensorFlow Datasets catalogue, read from ArrayRecord files without TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_jax import home
from ddpm_jax.data import DataSource, ImageSet
from ddpm_jax.data._tfds_without_tf import is_prepared, prepare
from ddpm_jax.data.labels import choose_labels, class_labels, first_of
from ddpm_jax.data.loading import IN_MEMORY_BYTES, load_or_stream
from ddpm_jax.image_size import ImageSize, sides

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, DatasetInfo

CATALOG = "https://www.tensorflow.org/datasets/catalog"
RECORDS_PER_READ = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(DataSource):
    """An image data set of TensorFlow Datasets. A missing one is downloaded and prepared."""

    name: str
    """Name in the TFDS catalogue, with its config if it has any: cifar10, celeb_a_hq/256."""
    split: str = "train"
    """Split in TFDS's notation: train, train+validation+test, train[:1000], train[:10%]."""
    data_dir: str | None = None
    """Folder that holds NAME/VERSION; None for $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    image_feature: str | None = None
    """Feature to train on; None for `image`, or else the first image feature."""
    label_feature: str | None = None
    """Feature of the labels; None for `label`, or else the most likely one; '' for no labels."""

    def describe(self) -> str:
        return f"tfds: {self.name}, split {self.split}, in {self.data_dir or 'the TFDS folder'}"

    def load(self, image_size: ImageSize, channels: int) -> ImageSet:
        builder = find_builder(self.name, self.data_dir)
        if not is_prepared(builder):
            prepare(builder)
        key = image_key(builder.info, self.image_feature)
        records = open_records(builder, self.split)

        def decode(index: int) -> np.ndarray:
            encoded = b"".join(read_feature(records[index], key).bytes_list.value)
            name = f"in record {index} of {self.name}"
            return self.decode(io.BytesIO(encoded), name, image_size, channels)

        labels, classes = read_labels(records, builder.info, self.label_feature)
        return load_or_stream(
            len(records),
            decode,
            labels,
            math.prod(sides(image_size)) * channels,
            self.name,
            self.max_corrupt_fraction,
            classes,
        )


def find_builder(name: str, data_dir: str | None) -> DatasetBuilder:
    """TFDS's builder of `name`. Raise ValueError with the nearest names if there is none."""
    import tensorflow_datasets

    folder = home.expand(data_dir) if data_dir else default_folder()
    try:
        return tensorflow_datasets.builder(name, data_dir=folder)
    # TFDS raises ValueError for an unknown name or config, AssertionError for an unknown version,
    # and ImportError for the name of a Hugging Face data set.
    except (ValueError, AssertionError, ImportError) as error:
        raise ValueError(f"TFDS has no data set {name!r}: {suggest(name)}") from error


def default_folder() -> Path | None:
    """A temporary folder if no home directory is known; None leaves the choice to TFDS."""
    if home.is_known() or os.environ.get("TFDS_DATA_DIR"):
        return None
    return home.temporary_cache("the data set", "set TFDS_DATA_DIR or give --data.data-dir")


def suggest(name: str) -> str:
    """A hint with the data sets, or the configs of the data set, whose names resemble `name`."""
    import tensorflow_datasets

    # The list of community data sets needs TensorFlow.
    names = tensorflow_datasets.list_builders(with_community_datasets=False)
    data_set = name.partition(":")[0].partition("/")[0]
    if data_set in names:
        configs = tensorflow_datasets.builder_cls(data_set).builder_configs
        names = [f"{data_set}/{config}" for config in configs] or [data_set]
    close = difflib.get_close_matches(name, sorted(set(names)), n=5)
    return f"did you mean {' or '.join(close)}?" if close else f"see {CATALOG}."


def feature_keys(features: Any, kind: type, first: str) -> list[str]:
    """The keys of all features of type `kind`, with `first` in front if it is one of them."""
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    return sorted(keys, key=lambda key: key != first)


def image_key(info: DatasetInfo, requested: str | None) -> str:
    """The key of the 8-bit image feature to train on: `requested`, or the default if it is None.

    Raise ValueError with the names of all features if there is none.
    """
    from tensorflow_datasets.core.features import Image as ImageFeature

    images = [
        key
        for key in feature_keys(info.features, ImageFeature, "image")
        if info.features[key].np_dtype == np.uint8
    ]
    if requested is None and images:
        return first_of(images, f"images of {info.name}", "--data.image-feature")
    if requested in images:
        return requested
    kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in info.features.items())
    missing = f"8-bit image feature {requested!r}" if requested else "8-bit image feature"
    raise ValueError(
        f"{info.name} has no {missing}: choose --data.image-feature among its features, {kinds}."
    )


def open_records(builder: DatasetBuilder, split: str) -> Sequence[bytes]:
    """The serialized examples of `split`, in memory if they fit into `IN_MEMORY_BYTES`.

    Raise ValueError for an unknown split, another format than ArrayRecord, and missing records.
    """
    from tensorflow_datasets.core.decode import DeserializeMethod

    formats = {str(file_format.value) for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"{builder.data_dir} holds {builder.name} as {', '.join(formats)}, not as ArrayRecord: "
            "give another --data.data-dir, or delete that folder to prepare the data set again."
        )
    shards = find_shards(builder, split)
    check_num_records(builder, shards)
    # With any other method TFDS would decode the image whenever the label is read.
    raw = DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    size = sum(
        os.path.getsize(shard.filename) * shard.take / shard.examples_in_shard for shard in shards
    )
    return list(read_all(records)) if size <= IN_MEMORY_BYTES else records


def read_all(records: Any) -> Iterator[bytes]:
    """Yield every record in order.

    Read a thousand at a time, which is ten times as fast as one by one.
    """
    for start in range(0, len(records), RECORDS_PER_READ):
        stop = min(start + RECORDS_PER_READ, len(records))
        yield from records.__getitems__(range(start, stop))


def find_shards(builder: DatasetBuilder, split: str) -> Sequence[Any]:
    """TFDS's file instructions for `split`.

    Raise ValueError with the names of the splits if it is unknown or empty.
    """
    try:
        shards = builder.info.splits[split].file_instructions
    except (ValueError, KeyError):
        shards = []
    if shards:
        return shards
    splits = ", ".join(
        f"{name} ({info.num_examples:,} images)" for name, info in builder.info.splits.items()
    )
    raise ValueError(
        f"{builder.name} has no images in a split {split!r}: its splits are {splits}; "
        "train[:100] is a part of one, and train+test the sum of two."
    )


def check_num_records(builder: DatasetBuilder, shards: Sequence[Any]) -> None:
    """Raise ValueError unless the files hold as many records as the data set's metadata says."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    expected = sum(shard.examples_in_shard for shard in shards)
    # `len` of TFDS's data source repeats the metadata, so open the files themselves.
    try:
        num_records = len(ArrayRecordDataSource([shard.filename for shard in shards]))
    # ArrayRecord raises RuntimeError if a file is missing or truncated.
    except RuntimeError as error:
        raise ValueError(
            f"{builder.data_dir} is corrupt ({error}): delete it to prepare it again."
        ) from error
    if num_records != expected:
        raise ValueError(
            f"{builder.data_dir} holds {num_records:,} records, but its metadata says "
            f"{expected:,}: delete it to prepare it again."
        )


def read_feature(record: bytes, key: str) -> Any:
    """The `tf.train.Feature` under `key` of a serialized example, read without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[key]


def read_labels(
    records: Sequence[bytes], info: DatasetInfo, requested: str | None
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """The class labels as int32 (n,), and the names of the classes, if there are any.

    Does not decode images.
    """
    import pyarrow as pa

    key = label_key(info, requested)
    if not key:
        return None, None
    ordered = records if isinstance(records, list) else read_all(records)
    values = pa.chunked_array([[only_value(read_feature(record, key)) for record in ordered]])
    described = f"The values of feature {key!r} of {info.name}"
    labels, classes = class_labels(values, described, "--data.label-feature")
    return labels, classes or class_names(info.features[key])


def label_key(info: DatasetInfo, requested: str | None) -> str:
    """The key of the label feature, as `choose_labels` chooses it among features of one value."""
    from tensorflow_datasets.core.features import ClassLabel

    scalars = [key for key, feature in info.features.items() if feature.shape == ()]
    declared = feature_keys(info.features, ClassLabel, "label")
    return choose_labels(requested, scalars, declared, info.name, "--data.label-feature")


def only_value(feature: Any) -> int | float | str | None:
    """The value of a `tf.train.Feature`, or None unless it holds exactly one."""
    texts = (text.decode(errors="replace") for text in feature.bytes_list.value)
    values = [*feature.int64_list.value, *feature.float_list.value, *texts]
    return values[0] if len(values) == 1 else None


def class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature: numbers if TFDS only knows how many there are."""
    return tuple(feature.names) if getattr(feature, "num_classes", None) else None
