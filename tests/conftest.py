"""Settings of every test: shapes are checked, JAX promotes nothing, 8 virtual CPU devices."""

import functools
import gc
import importlib.metadata
import json
import os
from pathlib import Path

import jaxtyping
import pytest

ROOT = Path(__file__).parents[1]
MAX_MEMORY_MAPS = 30_000
"""Memory maps above which a process frees its compiled programs; Linux allows 65,530."""

# Set in the environment, so that processes started by a test have the same settings.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# A program that is split into parts compiles in parallel, which two workers do already. The other
# flag is that of the commands, some of which run in the workers' processes.
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
if importlib.metadata.version("jax").startswith("0.10."):
    # The older code generator compiles in half the time. JAX 0.12 has only the newer one, so that
    # it is tested there.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# One directory of compiled programs for all workers, kept between runs. JAX locks it only if its
# size has a limit; without the lock a worker could read half of an entry.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 * 2**30)
# Each entry is written under the lock, after a look at all others: too slow for small programs.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.7"
jaxtyping.install_import_hook("ddpm_jax", "beartype.beartype")
HELPERS_WITH_ASSERTS = (
    "bench",
    "commands",
    "editing",
    "faults_of_disks",
    "faults_of_processes",
    "hosts",
    "processes",
)
pytest.register_assert_rewrite(*(f"helpers.{name}" for name in HELPERS_WITH_ASSERTS))

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Halves the time of the suite; the fixture `optimized` reverts it.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

LONGEST_FILES = (
    "test_models.py",
    "test_samplers.py",
    "test_parallel.py",
    "test_hosts.py",
    "test_latent_runs.py",
    "test_tutorials_page.py",
    "test_draw.py",
)


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that no worker starts one when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)


def pytest_collection_finish():
    """Collect garbage less often, and never look at what was imported: it took 5 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module")
def optimized():
    """Compile with all optimizations, as in the runs of users."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def without_kernels():
    """Turn off the kernels, which take long to compile.

    For tests of conditions and of what is built on networks. The other tests in tests/models, and
    tests/runs/test_loop.py, have them on.
    """
    from ddpm_jax import use_kernels

    use_kernels(False)
    yield
    use_kernels(True)


@pytest.fixture(scope="module")
def without_curves():
    """Draw no loss.png at the end of each run."""
    from ddpm_jax.runs import metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "loss_curve", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def shared_digits():
    """Resize the digits once for each image size."""
    from ddpm_jax.data.digits import Digits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", functools.cache(Digits.load))
        yield


@pytest.fixture(scope="module")
def shared_steps():
    """Compile the training step of a recipe once, also for runs of other lengths.

    The step depends on no setting that is left out of the key: a constant learning rate does not
    depend on the length.
    """
    from ddpm_jax.config import config_to_json
    from ddpm_jax.runs import loop

    make = loop.parallel_train_step
    made = {}

    def shared(config, tx, base=None):
        if config.optimizer.decay != "constant":
            return make(config, tx, base)
        settings = config_to_json(config)
        settings["training"] = settings["training"] | {"steps": None}
        for name in ("log", "checkpoint"):
            settings.pop(name)
        parts = [settings, base and base.hash, jax.config.jax_default_prng_impl]
        key = json.dumps(parts, sort_keys=True)
        if key not in made:
            made[key] = make(config, tx, base)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "parallel_train_step", shared)
        yield


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Free the compiled programs before their memory maps reach the limit of a process."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAX_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _unchanged_malloc(monkeypatch):
    """Leave the C library of the worker as it is: its settings cannot be taken back."""
    from ddpm_jax.devices import memory

    monkeypatch.setattr(memory, "use_one_heap", lambda: None)
    monkeypatch.setattr(memory, "keep_freed", lambda: None)


@pytest.fixture
def unchecked():
    """Disable type checks, because tyro.MISSING is of no setting's type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
