"""Break the code in named ways, one at a time: the tests named beside each way must fail.

    python tests/mutants.py                  run all mutants of tests/mutants_table.py
    python tests/mutants.py --only NAME ...  run some
    python tests/mutants.py --list           check that each snippet stands once in ddpm_jax/
    python tests/mutants.py --unbroken       run the same tests on the code as it is: all must pass

A mutant is caught when pytest exits with status 1, because a test failed. With status 0 it
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
FILES = ("train.py", "sample.py", "pyproject.toml")
SECONDS = 300
CACHE_BYTES = 2**31
PASSED, FAILED = 0, 1
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")


class Result(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    status: int | None
    """Exit status of pytest; None for a run that took too long."""
    words: str
    """The first test that failed, or the end of what pytest printed."""
    seconds: float


def sources() -> dict[Path, str]:
    """The text of every module of the package, by its path from the root."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {path.relative_to(ROOT): path.read_text() for path in paths}


def faults(mutants: list[Mutant], texts: dict[Path, str]) -> Iterator[str]:
    """One line for each mutant that cannot be made."""
    for mutant in mutants:
        count = sum(text.count(mutant.snippet) for text in texts.values())
        if count != 1:
            place = f"{count} times in {PACKAGE}/, not once"
            yield f"{mutant.name}: the snippet stands {place}: {mutant.snippet!r}"
            continue
        try:
            ast.parse(broken(mutant, texts)[1])
        except SyntaxError as error:
            yield f"{mutant.name}: the broken line is not Python: {error}"
    names = [mutant.name for mutant in mutants]
    doubled = sorted({name for name in names if names.count(name) > 1})
    yield from (f"{name}: two mutants have this name" for name in doubled)


def broken(mutant: Mutant, texts: dict[Path, str]) -> tuple[Path, str]:
    """The file of a mutant, and its text with the broken line."""
    path = next(path for path, text in texts.items() if mutant.snippet in text)
    return path, texts[path].replace(mutant.snippet, mutant.replacement)


def copy_tree(folder: Path) -> None:
    """Copy what the tests need."""
    for name in FOLDERS + FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


def environment(copy: Path, cache: Path) -> dict[str, str]:
    """The copy's package comes first, before an installed one, and compiled programs are shared."""
    return os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        # With a limit JAX takes a lock for each entry, so that no process reads half of one.
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(CACHE_BYTES),
    }


def check_import(folder: Path) -> None:
    """Raise SystemExit unless a copy in the folder is imported in place of an installed package."""
    copy = folder / "import"
    (copy / PACKAGE).mkdir(parents=True)
    (copy / PACKAGE / "__init__.py").touch()
    code = f"import importlib.util; print(importlib.util.find_spec({PACKAGE!r}).origin)"
    command = [sys.executable, "-c", code]
    found = subprocess.check_output(command, cwd=copy, env=environment(copy, copy), text=True)
    if not Path(found.strip()).is_relative_to(copy):
        sys.exit(f"The copy's {PACKAGE} is hidden by {found.strip()}: uninstall that one.")


def run(mutant: Mutant, texts: dict[Path, str], folder: Path) -> Result:
    """Run the tests of a mutant on a copy of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy = Path(name)
        copy_tree(copy)
        path, text = broken(mutant, texts)
        (copy / path).write_text(text)
        options = {"cwd": copy, "env": environment(copy, folder / "cache"), "timeout": SECONDS}
        command = [*PYTEST, *shlex.split(mutant.tests)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
            status, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, output = None, f"more than {SECONDS} seconds"
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.MULTILINE)
    words = failed[1][:120] if status == FAILED and failed else " ".join(output.split())[-300:]
    return Result(mutant, status, words, time.perf_counter() - begin)


def run_all(mutants: list[Mutant], texts: dict[Path, str], jobs: int) -> list[Result]:
    """Run the mutants, some at a time; results come in the order of the table."""
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
    """What became of a mutant, in the words of the table's last column."""
    if result.status == FAILED:
        return f"`{result.words}`"
    if result.status == PASSED:
        return "**survived**"
    return f"**error, status {result.status}**: {result.words}"


def table(results: list[Result]) -> str:
    """The results in Markdown."""
    lines = [("mutant", "what it stands for", "caught by"), ("---", "---", "---")]
    for result in results:
        caught_by = verdict(result).replace("|", "\\|")
        lines.append((f"`{result.mutant.name}`", result.mutant.meaning, caught_by))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def as_it_is(mutants: list[Mutant]) -> list[Mutant]:
    """One mutant that breaks nothing for each selection of tests."""
    by_tests = {mutant.tests: mutant for mutant in mutants}
    return [mutant._replace(replacement=mutant.snippet) for mutant in by_tests.values()]


def main() -> None:
    """Run what the command line asks for; exit with status 1 where a mutant was not caught."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    names = [mutant.name for mutant in MUTANTS]
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", choices=names, default=names, help="run these")
    add("--list", action="store_true", help="check the table and run nothing")
    add("--unbroken", action="store_true", help="run the tests on the code as it is")
    add("--jobs", type=int, default=2, help="how many run at a time (default 2)")
    add("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if mutant.name in options.only]
    texts = sources()
    if wrong := list(faults(mutants, texts)):
        sys.exit("\n".join(["tests/mutants_table.py does not fit the code:", *wrong]))
    if options.list:
        print("\n".join(f"{mutant.name:<34}{mutant.meaning}" for mutant in mutants))
        return
    begin = time.perf_counter()
    results = run_all(as_it_is(mutants) if options.unbroken else mutants, texts, options.jobs)
    text = table(results)
    print(text)
    if options.out:
        options.out.write_text(text)
    wanted, word = (PASSED, "passed") if options.unbroken else (FAILED, "caught")
    good = sum(result.status == wanted for result in results)
    print(f"{good} of {len(results)} {word} in {(time.perf_counter() - begin) / 60:.1f} minutes")
    sys.exit(good < len(results))


if __name__ == "__main__":
    main()
