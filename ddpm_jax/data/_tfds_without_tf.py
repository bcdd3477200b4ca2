"""Preparing a TFDS data set as ArrayRecord, with TensorFlow where it is installed and without it for the named sets.

The builders of those sets ask TensorFlow for three things: plain file access, a text decoding and a PNG encoder.
A stand-in with just these replaces it for as long as the set is prepared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.core.download import DownloadConfig

WITHOUT_TENSORFLOW = (
    "celeb_a",
    "celeb_a_hq",
    "cifar10",
    "fashion_mnist",
    "mnist",
    "oxford_flowers102",
)
OLDEST_TFDS, FIRST_UNTESTED_TFDS = (4, 9, 10), (4, 10)
PROBE_SECONDS = 4.0


def is_prepared(builder: DatasetBuilder) -> bool:
    """Whether the data set lies ready in its folder; TFDS alone logs a warning when there is no such folder."""
    return builder.data_path.exists() and builder.is_prepared()


def prepare(builder: DatasetBuilder, download_config: DownloadConfig | None = None) -> None:
    """Nothing; the data set is downloaded, checked against TFDS's checksums and left as ArrayRecord in its folder.

    Raises FileNotFoundError where files or a network are missing, ValueError where it cannot be done, in one sentence.
    """
    from tensorflow_datasets.core.download import DownloadConfig

    # The bucket holds TFRecord only, and asking for it costs a long wait without a network.
    config = (download_config or DownloadConfig()).replace(try_download_gcs=False)
    if builder.data_path.exists():
        raise ValueError(
            f"{builder.data_dir} is not a complete data set: delete it and it is prepared anew"
        )
    how = contextlib.nullcontext() if has_tensorflow() else without_tensorflow(builder.name)
    with how:
        manual = Path(config.manual_dir or builder.data_dir_root / "downloads" / "manual")
        check_files_made_by_hand(builder, manual)
        urls = missing_downloads(builder, manual)
        check_network(builder, manual, urls)
        size = sum(builder.url_infos[url].size for url in urls) / 2**20
        download = f", {size:,.1f} MiB to download" if urls else ""
        print(
            f"preparing {builder.info.full_name} in {builder.data_dir_root}{download}",
            file=sys.stderr,
        )
        with (
            explain_tfds_error(builder, manual),
            contextlib.redirect_stdout(sys.stderr),
        ):  # TFDS prints as it goes
            builder.download_and_prepare(download_config=config, file_format="array_record")


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def check_files_made_by_hand(builder: DatasetBuilder, manual: Path) -> None:
    """Raises FileNotFoundError that says what to put where, for a set that TFDS cannot download."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    wanted = getattr(
        builder.builder_config, "file_name", None
    )  # celeb_a_hq: one tar for each resolution
    if (manual / wanted).exists() if wanted else any(manual.glob("*")):
        return
    raise FileNotFoundError(
        f"TFDS cannot download {builder.name}: put {wanted or 'its files'} into {manual} "
        f"(how to make them: https://www.tensorflow.org/datasets/catalog/{builder.name})"
    )


def missing_downloads(builder: DatasetBuilder, manual: Path) -> list[str]:
    """The URLs of files that are neither in the folder for manual downloads nor among TFDS's finished downloads."""
    downloads = builder.data_dir_root / "downloads"
    notes = [*downloads.glob("*.INFO"), *downloads.glob(f"{builder.name}/*.INFO")]
    finished = {url for note in notes for url in json.loads(note.read_text())["urls"]}
    files = builder.url_infos or {}
    return [
        url
        for url, info in files.items()
        if url not in finished and not (info.filename and (manual / info.filename).exists())
    ]


def check_network(builder: DatasetBuilder, manual: Path, urls: list[str]) -> None:
    """Raises FileNotFoundError when a host that is needed does not answer: TFDS itself would retry for minutes."""
    if hosts := silent_hosts(urls):
        raise FileNotFoundError(
            f"{builder.name} is not in {builder.data_dir_root}, and {', '.join(hosts)} does not answer to download it: "
            f"connect to a network, put {file_names(builder)} into {manual}, "
            f"or give --data.data-dir DIR with DIR/{builder.info.full_name} as ArrayRecord"
        )


def file_names(builder: DatasetBuilder) -> str:
    """The files that TFDS downloads for `builder`, by their names."""
    names = [info.filename for info in (builder.url_infos or {}).values() if info.filename]
    return ", ".join(names) if 0 < len(names) <= 8 else "its files"


def silent_hosts(urls: Iterable[str]) -> list[str]:
    """The hosts of `urls` that gave no answer at all within `PROBE_SECONDS`; proxies set in the environment are used.

    In daemon threads, because looking up a name has no timeout of its own.
    """
    import requests

    first_urls = {urlsplit(url).hostname: url for url in urls if url.startswith("http")}
    answered = set()

    def ask(host: str, url: str) -> None:
        with contextlib.suppress(requests.RequestException):
            if (
                requests.head(url, timeout=PROBE_SECONDS).status_code < 500
            ):  # TFDS reports a refusal (4xx) at once
                answered.add(host)

    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in first_urls.items()]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [host for host in first_urls if host not in answered]


@contextlib.contextmanager
def explain_tfds_error(builder: DatasetBuilder, manual: Path) -> Iterator[None]:
    """A context in which TFDS's many-lined failures become a ValueError of one sentence."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    try:
        yield
    except (
        DownloadError,
        NonMatchingChecksumError,
        ExtractError,
        requests.RequestException,
        ImportError,
    ) as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".: ")
        raise ValueError(
            f"preparing {builder.name} failed ({cause}): try again, or put {file_names(builder)} into {manual}"
        ) from error


@contextlib.contextmanager
def without_tensorflow(name: str) -> Iterator[None]:
    """A context in which TFDS prepares the sets of `WITHOUT_TENSORFLOW`; raises ValueError for any other."""
    from tensorflow_datasets.core.features.image_feature import _ImageEncoder
    from tensorflow_datasets.core.utils import lazy_imports_utils

    check_without_tensorflow(name)
    # etils' lazy module keeps what it has imported under `_module`: filled in, it never imports TensorFlow.
    # Nothing goes into sys.modules, where TFDS and others would take the stand-in for the real one.
    lazy_module = vars(lazy_imports_utils.tensorflow)
    encode_with_tensorflow = _ImageEncoder._encode_image
    # TFDS encodes arrays, and only arrays, by a TensorFlow graph; its own PIL encoder takes them as well.
    _ImageEncoder._encode_image = encode_array
    try:
        with contextlib.ExitStack() as reading:
            lazy_module["_module"] = fake_tensorflow(reading)
            yield
    finally:
        _ImageEncoder._encode_image = encode_with_tensorflow
        lazy_module.pop("_module", None)


def check_without_tensorflow(name: str) -> None:
    """Raises ValueError unless `name` can be prepared without TensorFlow by the TFDS that is installed."""
    from tensorflow_datasets import __version__ as version

    if name not in WITHOUT_TENSORFLOW:
        raise ValueError(
            f"{name} is not prepared yet, and preparing it needs TensorFlow: pip install 'ddpm_jax[prepare]' "
            f"(only {', '.join(WITHOUT_TENSORFLOW)} do without)"
        )
    if (
        not OLDEST_TFDS
        <= tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        < FIRST_UNTESTED_TFDS
    ):
        raise ValueError(
            f"preparing {name} without TensorFlow is tested with tensorflow-datasets >=4.9.10,<4.10, not {version}: "
            "install one of those, or pip install 'ddpm_jax[prepare]'"
        )


def fake_tensorflow(reading: contextlib.ExitStack) -> SimpleNamespace:
    """What the builders of `WITHOUT_TENSORFLOW` use of TensorFlow, on local files; `reading` closes those it read."""

    def open_file(
        path: str | os.PathLike[str], mode: str = "r"
    ) -> contextlib.AbstractContextManager:
        # A file of TensorFlow's can be read after its `with` block is left, and celeb_a's builder does so.
        return (
            contextlib.nullcontext(reading.enter_context(open(path, mode)))
            if "r" in mode
            else open(path, mode)
        )

    gfile = SimpleNamespace(GFile=open_file, exists=os.path.exists)
    return SimpleNamespace(
        io=SimpleNamespace(gfile=gfile), compat=SimpleNamespace(as_text=os.fsdecode)
    )


def encode_array(encoder: Any, image: np.ndarray) -> bytes:
    """`image`, uint8 (h, w, 1) or (h, w, 3), in the format of TFDS's image `encoder`."""
    return encoder._encode_pil_image(
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    )
