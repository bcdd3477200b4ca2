"""Break the code in named ways, one at a time, and check that a test fails each time.

    python tests/mutants.py                  run all mutants of tests/mutants_table.py
    python tests/mutants.py --only NAME ...  run some
    python tests/mutants.py --list           check that each snippet occurs once in ddpm_jax/
    python tests/mutants.py --unbroken       run the same tests on unchanged code: all must pass

A mutant is caught if pytest exits with status 1, which means that a test failed. With status 0 it
survived. Any other status (a collection error, no test selected) is an error, and so is a run of
more than five minutes.
"""

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from mutants_table import MUTANTS, Mutant
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PACKAGE = "ddpm_jax"
FOLDERS = (PACKAGE, "tests", "configs", "examples", "benchmarks")
FILES = ("train.py", "sample.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SECONDS = 300
CACHE_BYTES = 2**31
PASSED, FAILED = 0, 1
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")


class Result(NamedTuple):
    """The outcome of one mutant."""

    mutant: Mutant
    status: int | None
    """Exit status of pytest; None for a run that took too long."""
    summary: str
    """The first test that failed, or else the end of pytest's output."""
    seconds: float


def sources() -> dict[Path, str]:
    """The text of every module of the package by its path, relative to the root."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {path.relative_to(ROOT): path.read_text() for path in paths}


def errors_in_table(mutants: list[Mutant], texts: dict[Path, str]) -> Iterator[str]:
    """Yield one line for each mutant that cannot be made."""
    for mutant in mutants:
        occurrences = sum(text.count(mutant.snippet) for text in texts.values())
        if occurrences != 1:
            place = f"{occurrences} times in {PACKAGE}/, not once"
            yield f"{mutant.name}: the snippet occurs {place}: {mutant.snippet!r}"
            continue
        try:
            ast.parse(mutate(mutant, texts)[1])
        except SyntaxError as error:
            yield f"{mutant.name}: the broken line is not Python: {error}"
    names = [mutant.name for mutant in mutants]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    yield from (f"{name}: two mutants have this name" for name in duplicates)


def mutate(mutant: Mutant, texts: dict[Path, str]) -> tuple[Path, str]:
    """The file that a mutant changes, and its changed text."""
    path = next(path for path, text in texts.items() if mutant.snippet in text)
    return path, texts[path].replace(mutant.snippet, mutant.replacement)


def copy_tree(folder: Path) -> None:
    """Copy the files that the tests need."""
    for name in FOLDERS + FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


def environment(copy: Path, cache: Path) -> dict[str, str]:
    """The variables with which Python imports the copy, and mutants share compiled programs."""
    return os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        # JAX locks the cache only if its size has a limit; otherwise a process may read half an
        # entry.
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(CACHE_BYTES),
    }


def check_import(folder: Path) -> None:
    """Raise SystemExit if Python imports an installed package in place of a copy in the folder."""
    copy = folder / "import"
    (copy / PACKAGE).mkdir(parents=True)
    (copy / PACKAGE / "__init__.py").touch()
    code = f"import importlib.util; print(importlib.util.find_spec({PACKAGE!r}).origin)"
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, cwd=copy, env=environment(copy, copy), text=True)
    imported = output.strip()
    if not Path(imported).is_relative_to(copy):
        sys.exit(f"Python imports {imported} in place of the copy: uninstall {PACKAGE}.")


def run(mutant: Mutant, texts: dict[Path, str], folder: Path) -> Result:
    """Run the tests of a mutant on its own copy of the code."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = Path(name)
        copy_tree(copy)
        path, text = mutate(mutant, texts)
        (copy / path).write_text(text)
        options = {"cwd": copy, "env": environment(copy, folder / "cache"), "timeout": SECONDS}
        command = [*PYTEST, *shlex.split(mutant.tests)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
            status = done.returncode
            output = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status = None
            output = f"more than {SECONDS} seconds"
    summary = " ".join(output.split())[-300:]
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.MULTILINE)
    if status == FAILED and failed:
        summary = failed[1][:120]
    return Result(mutant, status, summary, time.perf_counter() - start)


def run_all(mutants: list[Mutant], texts: dict[Path, str], jobs: int) -> list[Result]:
    """Run the mutants, `jobs` at a time. The results are in the order of the table."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as threads:
        folder = Path(name).resolve()
        check_import(folder)
        futures = [threads.submit(run, mutant, texts, folder) for mutant in mutants]
        for future in tqdm(as_completed(futures), total=len(futures), unit="mutant"):
            result = future.result()
            line = f"{result.mutant.name}: {verdict(result)} ({result.seconds:.0f} s)"
            tqdm.write(line, file=sys.stderr)
        return [future.result() for future in futures]


def verdict(result: Result) -> str:
    """The outcome of a mutant as text for the last column of the table."""
    if result.status == FAILED:
        return f"`{result.summary}`"
    if result.status == PASSED:
        return "**survived**"
    return f"**error, status {result.status}**: {result.summary}"


def table(results: list[Result]) -> str:
    """The results as a table in Markdown."""
    rows = [("mutant", "what breaks", "caught by"), ("---", "---", "---")]
    for result in results:
        caught_by = verdict(result).replace("|", "\\|")
        rows.append((f"`{result.mutant.name}`", result.mutant.meaning, caught_by))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def unbroken(mutants: list[Mutant]) -> list[Mutant]:
    """Mutants that change nothing, one for each selection of tests."""
    by_tests = {mutant.tests: mutant for mutant in mutants}
    return [mutant._replace(replacement=mutant.snippet) for mutant in by_tests.values()]


def main() -> None:
    """Run the mutants named on the command line; exit with status 1 if one was not caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [mutant.name for mutant in MUTANTS]
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", choices=names, default=names, help="run only these")
    add("--list", action="store_true", help="check the table without running anything")
    add("--unbroken", action="store_true", help="run the tests on unchanged code")
    add("--jobs", type=int, default=2, help="number of mutants to run at a time (default 2)")
    add("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if mutant.name in options.only]
    texts = sources()
    if errors := list(errors_in_table(mutants, texts)):
        sys.exit("\n".join(["tests/mutants_table.py does not fit the code:", *errors]))
    if options.list:
        print("\n".join(f"{mutant.name:<34}{mutant.meaning}" for mutant in mutants))
        return
    start = time.perf_counter()
    selected = unbroken(mutants) if options.unbroken else mutants
    results = run_all(selected, texts, options.jobs)
    text = table(results)
    print(text)
    if options.out:
        options.out.write_text(text)
    expected, outcome = (PASSED, "passed") if options.unbroken else (FAILED, "caught")
    num_expected = sum(result.status == expected for result in results)
    minutes = (time.perf_counter() - start) / 60
    print(f"{num_expected} of {len(results)} {outcome} in {minutes:.1f} minutes")
    sys.exit(num_expected < len(results))


if __name__ == "__main__":
    main()
