"""Code in a fresh Python that has not touched a device."""

import os
import subprocess
import sys
from pathlib import Path


def in_a_process(code, **environment):
    """What `code` prints in a fresh Python on 12 cores that has not touched a device."""
    cores = "os.sched_getaffinity = lambda pid: set(range(12))"
    code = f"import os, jax\nfrom ddpm_jax import parallel, platforms\n{cores}\n{code}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment = kept | {"JAX_PLATFORMS": "cpu"} | environment
    options = {"capture_output": True, "text": True, "check": True, "timeout": 120}
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, **options).stdout.split("\n")[:-1]
