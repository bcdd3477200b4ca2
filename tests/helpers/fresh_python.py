"""Run code in a new Python process, in which no device has been used."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_a_process(code: str, **environment: str) -> list[str]:
    """The lines that `code` prints in a new Python process that sees 12 cores.

    JAX's environment variables are removed, except those in `environment`.
    """
    names = "import os, jax\nfrom ddpm_jax.devices import parallel, platform as platforms"
    code = f"{names}\nos.sched_getaffinity = lambda pid: set(range(12))\n{code}"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
    }
    environment = inherited | {"JAX_PLATFORMS": "cpu"} | environment
    options = {"capture_output": True, "text": True, "check": True, "timeout": 120}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, **options)
    return printed.stdout.split("\n")[:-1]
