"""Measure how the code is written: python tests/code_metrics.py [FOLDER ...]

Prints, for the Python files of each folder (default: ddpm_jax): lines, comment lines, lines over
100 characters, docstrings by their first word, and the length of functions and files.
"""

import ast
import io
import itertools
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)


def sources(*folders: Path) -> Iterator[tuple[Path, str]]:
    """Every Python file of the folders, with its text."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield path, path.read_text()


def docstrings(text: str) -> list[str]:
    """The docstrings of a module, its classes, its functions and its fields."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            found.append(ast.get_docstring(node))
        body = getattr(node, "body", None)
        if not isinstance(node, (ast.Module, ast.ClassDef)) or not isinstance(body, list):
            continue
        for field, comment in itertools.pairwise(body):
            value = comment.value if isinstance(comment, ast.Expr) else None
            is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
            if isinstance(field, (ast.Assign, ast.AnnAssign)) and is_text:
                found.append(value.value)
    return found


def function_lengths(text: str) -> dict[str, int]:
    """The number of lines of each function without its docstring, by name."""
    lengths = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            lengths[f"{node.name}:{node.lineno}"] = length
    return lengths


def comment_lines(text: str) -> int:
    """The number of lines that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and t.line.strip().startswith("#") for t in tokens)


def main(folders: list[str]) -> None:
    """Print the measures of each folder."""
    for folder in folders or ["ddpm_jax"]:
        texts = dict(sources(ROOT / folder))
        lines = [line for text in texts.values() for line in text.splitlines()]
        comments = sum(comment_lines(text) for text in texts.values())
        first = [doc.split()[0] for text in texts.values() for doc in docstrings(text)]
        lengths = [n for text in texts.values() for n in function_lengths(text).values()]
        files = [len(text.splitlines()) for text in texts.values()]
        print(f"{folder}: {len(texts)} files, {len(lines):,} lines, {comments} comment lines")
        print(f"  comment lines of all lines: {100 * comments / len(lines):.1f}%")
        print(f"  lines over 100 characters: {sum(len(line) > 100 for line in lines)}")
        print(f"  docstrings: {len(first)}; first word What: {first.count('What')}, ", end="")
        print(f"The: {first.count('The')}")
        middle, most = np.percentile(lengths, [50, 90])
        print(f"  function lines: median {middle:.0f}, 9 in 10 at most {most:.0f}, ", end="")
        print(f"longest {max(lengths)}")
        print(f"  longest file: {max(files)} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
