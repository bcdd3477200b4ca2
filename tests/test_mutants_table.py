"""The table of mutants fits the code, so that `make mutants` can break each of its lines."""

from mutants import errors_in_table, sources
from mutants_table import MUTANTS


def test_each_snippet_occurs_once_and_its_broken_line_is_python():
    assert list(errors_in_table(MUTANTS, sources())) == []
