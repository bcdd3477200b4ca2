"""Rules of the written code that a machine can check; `tests/code_metrics.py` prints figures."""

import re
from pathlib import Path

from code_metrics import ROOT, docstrings, function_lengths, sources

FOLDERS = [ROOT / name for name in ("ddpm_jax", "configs", "examples", "benchmarks", "tests")]
LONGEST_FUNCTION = 60
LONGEST_FILE = 350


def test_no_docstring_begins_with_what():
    begun = [
        f"{path.relative_to(ROOT)}: {docstring[:60]}"
        for path, text in sources(*FOLDERS)
        for docstring in docstrings(text)
        if docstring.split()[0] == "What"
    ]
    assert begun == []


def test_no_function_and_no_file_is_long():
    for path, text in sources(ROOT / "ddpm_jax"):
        assert len(text.splitlines()) <= LONGEST_FILE, path
        for name, length in function_lengths(text).items():
            assert length <= LONGEST_FUNCTION, (path, name)


def test_nothing_names_the_systems_of_the_design_pages():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    texts = [*sources(*FOLDERS), *((page, page.read_text()) for page in pages)]
    for path, text in texts:
        if path == Path(__file__):
            continue
        assert re.search(r"\bS[1-5]('s)?\b", text) is None, path
