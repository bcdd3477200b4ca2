"""The wheel is complete, and an installed command finds its recipes without a checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

ROOT = Path(__file__).parents[1]
FOLDERS = ("ddpm_jax", "configs")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "train.py", "sample.py")
BUILD = "import setuptools.build_meta as backend; print(backend.build_{}({!r}))"
"""Code that calls the build backend as pip does, but without a new environment or the network."""


def build(kind: str, sources: Path, out: Path) -> Path:
    """Build the sdist or the wheel of a folder, and return its path."""
    command = [sys.executable, "-c", BUILD.format(kind, str(out))]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel built from the sdist, which is built from a copy of the checkout."""
    out = tmp_path_factory.mktemp("built")
    checkout = out / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, checkout)
    with tarfile.open(build("sdist", checkout, out)) as sdist:
        sdist.extractall(out, filter="data")
        sources = out / sdist.getnames()[0]
    assert all((sources / name).exists() for name in FILES)
    return build("wheel", sources, out)


def test_the_wheel_holds_the_package_with_its_networks_and_the_recipes(wheel):
    package = {path for path in (ROOT / "ddpm_jax").rglob("*") if path.suffix in (".py", ".typed")}
    package.remove(ROOT / "ddpm_jax" / "recipes" / "__init__.py")
    package |= {path for path in (ROOT / "ddpm_jax" / "nets").rglob("*") if path.is_file()}
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    recipes = [*(ROOT / "configs").glob("*.py"), *(ROOT / "configs").glob("curves/*.json")]
    expected |= {f"ddpm_jax/recipes/{path.relative_to(ROOT / 'configs')}" for path in recipes}
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == expected


def test_an_installed_command_finds_its_recipes_and_says_its_own_name(wheel, tmp_path):
    """The recipe imports another one. Python's path names the installed package alone."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", site]
    subprocess.run([*pip, *options, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [site / "bin" / "ddpm-jax-train", "--config", "fashion_mnist", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ddpm-jax-train --config fashion_mnist ")
    assert (site / "bin" / "ddpm-jax-sample").exists()
