"""The package's front: importing it is cheap, and its names exist."""

import importlib
import subprocess
import sys

import ddpm_jax

NOT_NEEDED = ["tensorflow", "tensorflow_datasets", "torch", "diffusers", "orbax", "sklearn", "datasets", "matplotlib"]
CODE = f"""
import sys
import ddpm_jax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "importing ddpm_jax starts a JAX backend"
print(*(name for name in {NOT_NEEDED} if name in sys.modules))
"""


def test_importing_touches_no_device_and_no_heavy_package():
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_public_name_exists():
    assert len(set(ddpm_jax.__all__)) == len(ddpm_jax.__all__)
    assert [name for name in ddpm_jax.__all__ if not hasattr(ddpm_jax, name)] == []


def test_all_names_the_public_objects_and_nothing_more():
    modules = {name: getattr(value, "__module__", "") for name, value in vars(ddpm_jax).items()}
    assert {name for name, module in modules.items() if module.startswith("ddpm_jax")} == set(ddpm_jax.__all__)


def test_a_samplers_module_is_not_hidden_by_its_function():
    assert callable(ddpm_jax.ddpm)
    assert importlib.import_module("ddpm_jax.samplers.ddpm").ddpm is ddpm_jax.ddpm
