"""The package ddpm_jax itself: importing it is cheap, and its names exist."""

import importlib
import subprocess
import sys
from pathlib import Path

import ddpm_jax

ROOT = Path(__file__).parents[1]
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "diffusers",
    "orbax",
    "sklearn",
    "datasets",
    "matplotlib",
    "huggingface_hub",
    "tokenizers",
    "transformers",
)
CODE = f"""
import importlib, logging, pkgutil, sys

def loaded(*names):
    return [name for name in names if name in sys.modules]

def levels():
    loggers = {{"": logging.root}} | logging.root.manager.loggerDict
    return {{
        name: (log.level, log.disabled, log.propagate, log.filters[:], log.handlers[:])
        for name, log in loggers.items()
        if isinstance(log, logging.Logger)
    }}

import ddpm_jax
assert not loaded{HEAVY}, loaded{HEAVY}

from ddpm_jax.data.tfds import Tfds
assert "celeb_a_hq/256" in Tfds(name="celeb_a_hq/256").describe()
assert not loaded("tensorflow_datasets"), "describing data loads TFDS"

import orbax.checkpoint, tensorboardX
before = levels()
for module in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax."):
    importlib.import_module(module.name)
after = levels()
changed = [name for name in before if after[name] != before[name]]
assert not changed, changed
heavy = set({HEAVY}) - {{"orbax"}}
assert not loaded(*heavy), loaded(*heavy)

from ddpm_jax.figures.plots import loss_curve
loss_curve([1], [1.0], sys.argv[1], "title")
assert not loaded("matplotlib.pyplot"), "drawing needs pyplot"

from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "an import starts a JAX backend"
"""


def test_importing_touches_no_device_no_logger_and_no_heavy_package(tmp_path):
    """In a fresh Python. Data are described without TFDS, and plots are drawn without pyplot."""
    command = [sys.executable, "-W", "error", "-c", CODE, str(tmp_path / "loss.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "loss.png").exists()


def test_every_public_name_exists():
    assert len(set(ddpm_jax.__all__)) == len(ddpm_jax.__all__)
    assert [name for name in ddpm_jax.__all__ if not hasattr(ddpm_jax, name)] == []


def test_all_lists_exactly_the_public_objects():
    modules = {name: getattr(value, "__module__", "") for name, value in vars(ddpm_jax).items()}
    public = {name for name, module in modules.items() if module.startswith("ddpm_jax")}
    assert public == set(ddpm_jax.__all__)


def test_the_function_of_a_sampler_does_not_hide_its_module():
    assert callable(ddpm_jax.ddpm)
    assert importlib.import_module("ddpm_jax.samplers.ddpm").ddpm is ddpm_jax.ddpm
