"""Find the parquet files of a split, and read columns of all of them as one Arrow table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_jax.data import SPLITS
from ddpm_jax.data.folder import list_files
from ddpm_jax.errors import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHARD = re.compile(r"(?P<prefix>.*?)(?P<index>\d{1,6})-of-(?P<count>\d{1,6}).*")
"""The name of one of several files of a split, such as train-00000-of-00002.parquet."""


def parquet_files(path: Path, split: str) -> list[Path]:
    """The file `path`, or the sorted parquet files of a split in the folder `path`.

    A file belongs to `split` if `split_names` finds that word alone in its relative path. If it
    finds no name of a split in any path, all files belong to `train`. Where there are files such as
    SPLIT-00000-of-00002.parquet, those of another name before the number, such as SPLIT_sft, are
    not of this split. Hidden files and folders are skipped.
    Raise ValueError if a file may belong to other splits too, and FileNotFoundError if
    there is no file, or if one of several is missing.
    """
    if path.is_file():
        return [path]
    files = [
        (folder / name).relative_to(path).as_posix()
        for folder, names in list_files(path)
        for name in names
        if not name.startswith(".") and name.lower().endswith(".parquet")
    ]
    numbered = {name: _numbered_split(name) for name in files}
    if split.lower() in numbered.values():
        files = [name for name in files if numbered[name] in (split.lower(), None)]
    found = {name: split_names(name, split) for name in files}
    for name in files:
        if numbered[name] == split.lower():
            found[name] = {split.lower()}
    chosen = sorted(name for name in files if split.lower() in found[name])
    for name in chosen:
        if len(found[name]) > 1:
            raise ValueError(
                f"{name} in {path} may belong to {' or '.join(sorted(found[name]))}: give the path "
                "of one file, or rename it."
            )
    if not chosen and split == "train" and not any(found.values()):
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
    check_shards(chosen, path)
    return [path / name for name in chosen]


def _numbered_split(name: str) -> str | None:
    """The split of a file SPLIT-00000-of-00002.parquet, in lower case; None for another name."""
    shard = SHARD.fullmatch(name.lower().rpartition("/")[2])
    return shard["prefix"].rstrip("-") or None if shard else None


def split_names(name: str, split: str) -> set[str]:
    """The names of splits in the last part of a relative path that contains any.

    The file's name is the last part: train-test-split/test.parquet is of `test` alone. `split`
    counts as the name of a split too.
    """
    for part in reversed(name.lower().split("/")):
        found = {*SPLITS, split.lower()} & set(re.split(r"[^a-z0-9]+", part))
        if found:
            return found
    return set()


def check_shards(names: list[str], folder: Path) -> None:
    """Raise FileNotFoundError if a file of a numbered series is missing.

    An example is train-00001-of-00002.parquet. The rest of a name after the count may differ.
    """
    shards = [match for match in map(SHARD.fullmatch, names) if match]
    found: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for shard in shards:
        found[shard.group("prefix", "count")].add(int(shard["index"]))
    for (prefix, count), indices in found.items():
        missing = sorted(set(range(int(count))) - indices)
        if missing:
            raise FileNotFoundError(
                f"{prefix}{missing[0]:0{len(count)}}-of-{count}.parquet is missing in {folder} "
                f"({len(missing)} of {int(count)} files are): add it, "
                "or rename the other files to train on them alone."
            )


def read_parquet(
    files: list[Path], choose_columns: Callable[[pa.Schema, str], list[str]]
) -> pa.Table:
    """Read the columns that `choose_columns(schema, file name)` chooses in the first file.

    The rows of all `files` follow each other in order. Raise ValueError if a file is corrupt, or if
    its columns differ from those of the first file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[pa.Table] = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                if not parts:
                    columns = choose_columns(parquet.schema_arrow, str(file))
                parts.append(read_columns(parquet, columns))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"Cannot read {file} as parquet ({one_line(error).rstrip('.')}): replace the file."
            ) from error
        if parts[-1].schema != parts[0].schema:
            raise ValueError(
                f"{file} and {files[0]} have different columns or types: "
                "give one of them as the path."
            )
    return pa.concat_tables(parts)


def read_columns(parquet: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Read columns of a file, one row group after the other.

    Arrow cannot read a file with more than 2 GiB of images in structs, or structs of dictionaries,
    at once.
    """
    import pyarrow as pa

    groups = [parquet.read_row_group(i, columns) for i in range(parquet.num_row_groups)]
    return pa.concat_tables(groups) if groups else parquet.read(columns)
