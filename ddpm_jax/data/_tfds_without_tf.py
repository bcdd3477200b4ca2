"""Prepare TFDS data sets as ArrayRecord: any data set with TensorFlow, a few without it.

The builders of these few use TensorFlow for three things: file access, decoding text, and encoding
images. While a data set is prepared, a fake TensorFlow does the first two, and Pillow encodes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ddpm_jax.data._network import is_reachable

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

WITHOUT_TENSORFLOW = (
    "celeb_a",
    "celeb_a_hq",
    "cifar10",
    "fashion_mnist",
    "mnist",
    "oxford_flowers102",
)
OLDEST_TFDS = (4, 9, 10)
FIRST_UNTESTED_TFDS = (4, 10)
PROBE_SECONDS = 4.0


def is_prepared(builder: DatasetBuilder) -> bool:
    """Whether the data set is in its folder, ready to read."""
    # Without the folder, `builder.is_prepared` would log a warning.
    return builder.data_path.exists() and builder.is_prepared()


def prepare(builder: DatasetBuilder) -> None:
    """Download the data set, verify its checksums, write ArrayRecord files.

    Raise FileNotFoundError if files are missing or a server does not answer, and ValueError if the
    preparation fails or needs TensorFlow.
    """
    from tensorflow_datasets.core.download import DownloadConfig

    # TFDS's bucket holds only TFRecord files, and without a network the request for them is slow.
    config = DownloadConfig(try_download_gcs=False)
    if builder.data_path.exists():
        raise ValueError(
            f"{builder.data_dir} is not a complete data set: delete it to prepare it again."
        )
    backend = contextlib.nullcontext() if has_tensorflow() else without_tensorflow(builder.name)
    with backend:
        manual = Path(builder.data_dir_root / "downloads" / "manual")
        check_manual_files(builder, manual)
        urls = missing_downloads(builder, manual)
        check_network(builder, manual, urls)
        size = sum(builder.url_infos[url].size for url in urls) / 2**20
        download = f", {size:,.1f} MiB to download" if urls else ""
        print(
            f"Preparing {builder.info.full_name} in {builder.data_dir_root}{download}.",
            file=sys.stderr,
        )
        # TFDS prints its progress to stdout, which is for the output of the command.
        to_stderr = contextlib.redirect_stdout(sys.stderr)
        with explain_tfds_error(builder, manual), to_stderr:
            builder.download_and_prepare(download_config=config, file_format="array_record")


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed. Does not import it."""
    return importlib.util.find_spec("tensorflow") is not None


def check_manual_files(builder: DatasetBuilder, manual: Path) -> None:
    """Raise FileNotFoundError if files that TFDS cannot download are not in the folder `manual`."""
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    # celeb_a_hq needs one tar file, whose name depends on the resolution.
    file_name = getattr(builder.builder_config, "file_name", None)
    present = (manual / file_name).exists() if file_name else any(manual.glob("[!.]*"))
    if present:
        return
    catalog = f"https://www.tensorflow.org/datasets/catalog/{builder.name}"
    raise FileNotFoundError(
        f"TFDS cannot download {builder.name}: put {file_name or 'its files'} into {manual} "
        f"(see {catalog} for how to make them)."
    )


def missing_downloads(builder: DatasetBuilder, manual: Path) -> list[str]:
    """The URLs of files that are neither in `manual` nor among TFDS's finished downloads."""
    downloads = builder.data_dir_root / "downloads"
    folders = (downloads, downloads / builder.name)
    notes = [note for folder in folders for note in folder.glob("[!.]*.INFO")]
    finished = {url for note in notes for url in json.loads(note.read_text())["urls"]}
    files = builder.url_infos or {}
    return [
        url
        for url, info in files.items()
        if url not in finished and not (info.filename and (manual / info.filename).exists())
    ]


def check_network(builder: DatasetBuilder, manual: Path, urls: list[str]) -> None:
    """Raise FileNotFoundError if a host of `urls` does not answer; TFDS would retry for minutes."""
    hosts = unreachable_hosts(urls)
    if hosts:
        raise FileNotFoundError(
            f"The data set {builder.name} is not in {builder.data_dir_root}, and "
            f"{', '.join(hosts)} does not answer: connect to a network, "
            f"put {file_names(builder)} into {manual}, "
            f"or give --data.data-dir DIR with DIR/{builder.info.full_name} as ArrayRecord."
        )


def file_names(builder: DatasetBuilder) -> str:
    """The names of the files that TFDS downloads, or "its files" if there are none or over 8."""
    names = [info.filename for info in (builder.url_infos or {}).values() if info.filename]
    return ", ".join(names) if 0 < len(names) <= 8 else "its files"


def unreachable_hosts(urls: Iterable[str]) -> list[str]:
    """The hosts of `urls` that do not answer within `PROBE_SECONDS`.

    Probe all hosts at the same time, through the proxies of the environment.
    """
    import requests

    url_by_host = {urlsplit(url).hostname or url: url for url in urls if url.startswith("http")}
    if not url_by_host:
        return []

    def head(url: str) -> None:
        response = requests.head(url, timeout=PROBE_SECONDS)
        # TFDS reports a refusal (4xx) at once, so only a server error (5xx) counts as no answer.
        if response.status_code >= 500:
            response.raise_for_status()

    def answers(url: str) -> bool:
        return is_reachable(partial(head, url), PROBE_SECONDS)

    with ThreadPoolExecutor(len(url_by_host)) as threads:
        reachable = list(threads.map(answers, url_by_host.values()))
    return [host for host, ok in zip(url_by_host, reachable, strict=True) if not ok]


@contextlib.contextmanager
def explain_tfds_error(builder: DatasetBuilder, manual: Path) -> Iterator[None]:
    """Turn TFDS's multi-line errors in the block into a ValueError of one line."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    failures = (
        DownloadError,
        NonMatchingChecksumError,
        ExtractError,
        requests.RequestException,
        ImportError,
    )
    try:
        yield
    except failures as error:
        lines = str(error).strip().splitlines()
        cause = next(iter(lines), type(error).__name__).rstrip(".: ")
        raise ValueError(
            f"Preparing {builder.name} failed ({cause}): try again, "
            f"or put {file_names(builder)} into {manual}."
        ) from error


@contextlib.contextmanager
def without_tensorflow(name: str) -> Iterator[None]:
    """Let TFDS prepare a set of `WITHOUT_TENSORFLOW` in the block.

    Raise ValueError for any other set.
    """
    from tensorflow_datasets.core.features.image_feature import _ImageEncoder
    from tensorflow_datasets.core.utils import lazy_imports_utils

    check_without_tensorflow(name)
    # etils' lazy module caches its import under `_module`: with this entry it imports nothing.
    # `sys.modules` stays untouched, so that no other package takes the fake for TensorFlow.
    lazy_module = vars(lazy_imports_utils.tensorflow)
    encode_with_tensorflow = _ImageEncoder._encode_image
    # TFDS encodes arrays with a TensorFlow graph, but PIL images without one.
    _ImageEncoder._encode_image = encode_array
    try:
        with contextlib.ExitStack() as open_files:
            lazy_module["_module"] = fake_tensorflow(open_files)
            yield
    finally:
        _ImageEncoder._encode_image = encode_with_tensorflow
        lazy_module.pop("_module", None)


def check_without_tensorflow(name: str) -> None:
    """Raise ValueError unless the installed TFDS can prepare the set `name` without TensorFlow."""
    from tensorflow_datasets import __version__ as version

    if name not in WITHOUT_TENSORFLOW:
        raise ValueError(
            f"The data set {name} is not prepared yet, and preparing it needs TensorFlow: "
            f"pip install 'ddpm_jax[prepare]' (only {', '.join(WITHOUT_TENSORFLOW)} do without)."
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not OLDEST_TFDS <= numbers < FIRST_UNTESTED_TFDS:
        raise ValueError(
            f"Preparing {name} without TensorFlow is tested with tensorflow-datasets "
            f">=4.9.10,<4.10, not {version}: install one of those, "
            "or pip install 'ddpm_jax[prepare]'."
        )


def fake_tensorflow(open_files: contextlib.ExitStack) -> SimpleNamespace:
    """Make the parts of TensorFlow that the builders of `WITHOUT_TENSORFLOW` use, for local files.

    `open_files` closes the files that were opened for reading.
    """

    def open_file(
        path: str | os.PathLike[str], mode: str = "r"
    ) -> contextlib.AbstractContextManager:
        if "r" not in mode:
            return open(path, mode)
        # celeb_a's builder reads a file after its `with` block, which TensorFlow allows.
        return contextlib.nullcontext(open_files.enter_context(open(path, mode)))

    gfile = SimpleNamespace(GFile=open_file, exists=os.path.exists)
    io = SimpleNamespace(gfile=gfile)
    compat = SimpleNamespace(as_text=os.fsdecode)
    return SimpleNamespace(io=io, compat=compat)


def encode_array(encoder: Any, image: np.ndarray) -> bytes:
    """Encode a uint8 image (h, w, 1) or (h, w, 3) in the format of TFDS's `encoder`."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    return encoder._encode_pil_image(Image.fromarray(pixels))
