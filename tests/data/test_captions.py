"""Captions of a folder and of a parquet file; images without one count as corrupt images."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.latent_runs import captioned_images, write_metadata

from ddpm_jax.data import loading
from ddpm_jax.data.folder import Folder
from ddpm_jax.data.huggingface import HuggingFace

ORDER = ("blue square", "blue stripe", "green square", "green stripe", "red square", "red stripe")
"""The captions in the order of the files' names."""


@pytest.fixture
def folder(tmp_path):
    return captioned_images(tmp_path / "images")


def load(folder, **options):
    return Folder(path=str(folder), **{"caption_column": "text"} | options).load(8, 3)


def missing_one(folder):
    """Take the caption of one image away, and give another one a caption of white space."""
    lines = [
        {"file_name": f"{text.replace(' ', '-')}.png", "text": text}
        for text in ORDER
        if text != "red square"
    ]
    lines[0]["text"] = "  "
    write_metadata(folder, lines)


def test_captions_belong_to_the_files_that_the_lines_name(folder, capsys):
    images = load(folder)
    assert images.captions == ORDER
    # The file of the captions is not said to be left out.
    assert "Left out" not in capsys.readouterr().err
    assert load(folder, caption_column="group").captions == tuple(text.split()[0] for text in ORDER)
    assert load(folder, caption_column=None).captions is None


def test_captions_may_contain_line_separators_and_the_file_a_mark(folder):
    """JSON allows U+2028 in a string, and Windows begins files with a mark."""
    lines = [{"file_name": f"{text.replace(' ', '-')}.png", "text": text} for text in ORDER]
    lines[0]["text"] = "blue\u2028square"
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8-sig")
    assert load(folder).captions == ("blue\u2028square", *ORDER[1:])


def test_images_without_a_caption_are_refused_or_left_out_by_their_share(folder, capsys):
    missing_one(folder)
    with pytest.raises(ValueError, match=r"2 of 6 images cannot be used.*has no caption"):
        load(folder, max_corrupt_fraction=0.2)
    capsys.readouterr()
    images = load(folder, max_corrupt_fraction=0.4)
    assert images.captions == tuple(text for text in ORDER[1:] if text != "red square")
    assert len(images) == len(images.read(np.arange(4))["image"]) == 4
    printed = capsys.readouterr().err
    assert printed.count("has no caption: add one, or remove the image.") == 2
    assert "2 of 6 images cannot be used and are skipped." in printed


def test_a_set_on_disk_refuses_an_image_without_a_caption_when_it_is_read(folder, monkeypatch):
    missing_one(folder)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 0)
    images = load(folder)
    images.read(np.array([1]))
    with pytest.raises(ValueError, match=r"blue-square.png has no caption"):
        images.read(np.array([0]))
    assert load(folder, max_corrupt_fraction=0.4).captions == ("blue stripe", *ORDER[2:4], ORDER[5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There are no captions in .*: add metadata.jsonl"),
        ('{"file_name": "red-square.png", "title": "red"}\n', "choose .* among title"),
        ('{"file_name": "red-square.png"}\n', "has no captions 'text': add them to its lines"),
        ("not JSON\n", "each line must be a JSON object with file_name"),
        ("[]\n", "each line must be a JSON object with file_name"),
        ('{"text": "red"}\n', "each line must be a JSON object with file_name"),
    ],
)
def test_metadata_that_gives_no_captions_is_an_error_of_one_line(folder, text, message):
    path = folder / "metadata.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_parquet_column_of_captions_is_no_label(tmp_path, folder):
    names = [f"{text.replace(' ', '-')}.png" for text in ORDER]
    files = [(folder / name).read_bytes() for name in names]
    columns = {"image": files, "label": [0, 1] * 3, "text": [*ORDER[:5], None]}
    path = tmp_path / "captioned.parquet"
    pq.write_table(pa.table(columns), path)
    source = HuggingFace(path=str(path), caption_column="text", max_corrupt_fraction=0.2)
    images = source.load(8, 3)
    assert images.captions == ORDER[:5]
    np.testing.assert_array_equal(images.labels, [0, 1, 0, 1, 0])
    unlabeled = HuggingFace(
        path=str(path), label_column="", caption_column="text", max_corrupt_fraction=0.2
    )
    assert unlabeled.load(8, 3).labels is None
    with pytest.raises(ValueError, match=r"choose --data.caption-column among text"):
        HuggingFace(path=str(path), caption_column="label").load(8, 3)
