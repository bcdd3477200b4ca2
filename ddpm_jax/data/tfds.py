"""Any image data set of the TensorFlow Datasets catalogue, read from ArrayRecord files without TensorFlow."""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_jax.data import IN_MEMORY_BYTES, DataSource, ImageSet, load_or_stream
from ddpm_jax.data._tfds_without_tf import is_prepared, prepare
from ddpm_jax.data.decode import decode_image

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder, DatasetInfo

RECORDS_PER_READ = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(DataSource):
    """Images of a TensorFlow Datasets set, kept as ArrayRecord; a set that is missing is downloaded and prepared."""

    name: str
    """Name in the TFDS catalogue, with its config if it has some: cifar10, celeb_a_hq/256."""
    split: str = "train"
    """Which part: train, test, train+validation+test, train[:1000], train[:10%]."""
    data_dir: str | None = None
    """Folder that holds NAME/VERSION; by default TFDS's own ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    image_feature: str | None = None
    """Which feature is the image; by default `image`, or the first that is one."""

    def describe(self) -> str:
        return f"tfds: {self.name}, split {self.split}, in {self.data_dir or 'the TFDS folder'}"

    def load(self, image_size: int, channels: int) -> ImageSet:
        builder = find_builder(self.name, self.data_dir)
        if not is_prepared(builder):
            prepare(builder)
        key = image_key(builder.info, self.image_feature)
        records = open_records(builder, self.split)

        def decode(index: int) -> np.ndarray:
            (encoded,) = value(records[index], key).bytes_list.value
            name = f"in record {index} of {self.name}"
            return decode_image(io.BytesIO(encoded), name, image_size, channels, self.resize)

        labels = read_labels(records, builder.info.features)
        return load_or_stream(
            len(records),
            decode,
            labels,
            image_size**2 * channels,
            self.name,
            self.max_corrupt_fraction,
        )


def find_builder(name: str, data_dir: str | None) -> DatasetBuilder:
    """TFDS's builder of `name`; raises ValueError with the nearest names when there is none."""
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir and os.path.expanduser(data_dir))
    except (
        ValueError,
        AssertionError,
        ImportError,
    ) as error:  # unknown name or config; version; Hugging Face's names
        raise ValueError(f"TFDS has no data set {name!r}: {nearest(name)}") from error


def nearest(name: str) -> str:
    """What to write instead of `name`: similar data sets, or similar configs of the data set it names."""
    import tensorflow_datasets

    names = tensorflow_datasets.list_builders(
        with_community_datasets=False
    )  # the community's list needs TensorFlow
    known = name.partition(":")[0].partition("/")[0]
    if known in names:
        names = [
            f"{known}/{config}" for config in tensorflow_datasets.builder_cls(known).builder_configs
        ] or [known]
    close = difflib.get_close_matches(name, sorted(set(names)), n=5)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else "see https://www.tensorflow.org/datasets/catalog"
    )


def keys_of(features: Any, kind: type, first: str) -> list[str]:
    """The keys of the features of one kind, `first` in front if it is among them."""
    return sorted(
        (key for key, feature in features.items() if isinstance(feature, kind)),
        key=lambda key: key != first,
    )


def image_key(info: DatasetInfo, wanted: str | None) -> str:
    """The key of the 8-bit image feature to train on; raises ValueError that names the features when there is none."""
    from tensorflow_datasets.core.features import Image as ImageFeature

    images = [
        key
        for key in keys_of(info.features, ImageFeature, "image")
        if info.features[key].np_dtype == np.uint8
    ]
    key = wanted or next(iter(images), None)
    if key in images:
        return key
    kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in info.features.items())
    missing = f"8-bit image feature {wanted!r}" if wanted else "8-bit image feature"
    raise ValueError(
        f"{info.name} has no {missing}: choose --data.image-feature among its features, {kinds}"
    )


def open_records(builder: DatasetBuilder, split: str) -> Sequence[bytes]:
    """The serialized examples of `split`; raises ValueError for an unknown split, another format or lost records."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    formats = {str(file_format.value) for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"{builder.data_dir} holds {builder.name} as {', '.join(formats)}, not as ArrayRecord: "
            "give another --data.data-dir, or delete that folder and the set is prepared anew"
        )
    shards = shards_of(builder, split)
    check_count(builder, shards)
    # Raw bytes, because TFDS would decode the image whenever it is asked for the label.
    raw = DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    size = sum(
        os.path.getsize(shard.filename) * shard.take / shard.examples_in_shard for shard in shards
    )
    return list(in_order(records)) if size <= IN_MEMORY_BYTES else records


def in_order(records: Any) -> Iterator[bytes]:
    """Every record, read a thousand at a time: ten times faster than one by one."""
    for start in range(0, len(records), RECORDS_PER_READ):
        yield from records.__getitems__(range(start, min(start + RECORDS_PER_READ, len(records))))


def shards_of(builder: DatasetBuilder, split: str) -> Sequence[Any]:
    """TFDS's file instructions for `split`; raises ValueError that names the splits when it is unknown or empty."""
    try:
        if shards := builder.info.splits[split].file_instructions:
            return shards
    except (ValueError, KeyError):
        pass
    splits = ", ".join(
        f"{name} ({info.num_examples:,} images)" for name, info in builder.info.splits.items()
    )
    raise ValueError(
        f"{builder.name} has no images in a split {split!r}: "
        f"its splits are {splits}, and parts and sums of them as in train[:100] or train+test"
    )


def check_count(builder: DatasetBuilder, shards: Sequence[Any]) -> None:
    """Raises ValueError unless the files hold as many records as the data set's own description says.

    `len` of TFDS's data source repeats the description, so the files themselves have to be asked.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    expected = sum(shard.examples_in_shard for shard in shards)
    try:
        found = len(ArrayRecordDataSource([shard.filename for shard in shards]))
    except RuntimeError as error:  # a file that is missing or cut short
        raise ValueError(
            f"{builder.data_dir} is damaged ({error}): delete it and it is prepared anew"
        ) from error
    if found != expected:
        raise ValueError(
            f"{builder.data_dir} holds {found:,} records where its description says {expected:,}: "
            "delete it and it is prepared anew"
        )


def value(record: bytes, key: str) -> Any:
    """The `tf.train.Feature` under `key` in one serialized example, read without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[key]


def read_labels(records: Sequence[bytes], features: Any) -> np.ndarray | None:
    """The int32 class labels (n,) under `label` or the first ClassLabel feature, without decoding an image; or None."""
    from tensorflow_datasets.core.features import ClassLabel

    keys = keys_of(features, ClassLabel, "label")
    if not keys:
        return None
    ordered = records if isinstance(records, list) else in_order(records)
    return np.fromiter(
        (value(record, keys[0]).int64_list.value[0] for record in ordered), np.int32, len(records)
    )
