"""Settings of every test: shapes checked, no implicit promotion, 8 virtual CPU devices."""

import gc
import os
import tempfile

import pytest
from jaxtyping import install_import_hook

os.environ["JAX_NUM_CPU_DEVICES"] = "8"  # by the environment, so that the scripts leave it alone when a test calls them
os.environ.pop("XLA_FLAGS", None)
install_import_hook("ddpm_jax", "beartype.beartype")
pytest.register_assert_rewrite(
    "helpers.bench",
    "helpers.commands",
    "helpers.editing",
    "helpers.processes",
    "faults_of_disks",
    "faults_of_processes",
)  # their asserts say what they found, as in tests

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)  # halves the suite; see `optimized`
jax.config.update("jax_numpy_rank_promotion", "raise")


SLOW = {"test_hosts.py", "test_faults.py", "test_command_line_run.py", "test_loop.py"}


def pytest_collection_modifyitems(items):
    """Files that take minutes come first, so that no worker begins one when the others are done."""
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture(scope="module")
def optimized():
    """For what is promised of real runs: programs compiled as users have them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def compile_once():
    """Programs that several tests of one session compile are compiled once; nothing is kept afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Each compiled program holds memory maps, of which Linux allows a process 65,530: the whole suite needs more."""
    yield
    jax.clear_caches()
    gc.collect()
