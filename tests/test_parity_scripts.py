"""The last line, the exit status and the help of tests/parity, which need no PyTorch."""

import ast
import importlib
from pathlib import Path

import pytest

PARITY = Path(__file__).parent / "parity"
WITHIN = [("outputs", 1e-6, 5e-6), ("gradients", 5e-5, 1e-4)]


@pytest.fixture
def shared(monkeypatch):
    """The module that the scripts share."""
    monkeypatch.syspath_prepend(str(PARITY))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # removes it after the test
    return importlib.import_module("shared")


@pytest.mark.parametrize(
    ("figures", "wrong", "status", "end"),
    [
        (WITHIN, 0, 0, "all within their bounds; worst: gradients 5.0e-05, bound 1.0e-04"),
        ([*WITHIN, ("losses", 2e-6, 1e-6)], 0, 1, "1 wrong; worst: losses 2.0e-06, bound 1.0e-06"),
        ([*WITHIN, ("image", float("nan"), 1)], 0, 1, "1 wrong; worst: image nan, bound 1.0e+00"),
        (WITHIN, 2, 1, "2 wrong; worst: gradients 5.0e-05, bound 1.0e-04"),
    ],
)
def test_the_last_line_names_the_worst_figure_and_the_status_is_1_if_any_is_over(
    capsys, shared, figures, wrong, status, end
):
    assert shared.conclude("networks", [shared.Figure(*row) for row in figures], wrong) == status
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"networks: {len(figures)} figures, {end}"


@pytest.mark.parametrize(
    "name", ["samplers", "nets", "chains", "training", "tutorials", "stable_diffusion", "features"]
)
def test_the_help_of_a_script_says_how_long_it_takes(name):
    source = (PARITY / f"{name}.py").read_text()
    assert "It takes about " in ast.get_docstring(ast.parse(source))
    assert "make_parser(__doc__)" in source
