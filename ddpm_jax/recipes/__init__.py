"""The recipes, importable as `ddpm_jax.recipes.NAME`, whatever the Python path.

In a checkout this package stands for the folder `configs/`. An installed package has the recipes
themselves in place of this file: see `package-dir` in pyproject.toml.
May hold nothing else.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
