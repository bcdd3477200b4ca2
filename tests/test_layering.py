"""Who may import whom, by reading the source; and every module has its tests."""

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train", "sample"]

# Modules (patterns, relative to ddpm_jax) and all they may import of ddpm_jax; modules not named are free.
MAY_IMPORT = {
    "schedule": [],
    "grids": ["errors", "schedule"],
    "compat": ["errors", "schedule", "grids", "prediction"],
    "prediction": ["schedule"],
    "likelihood": ["schedule", "grids", "prediction"],
    "losses": ["schedule", "grids", "prediction", "likelihood"],
    "preconditioning": ["schedule", "prediction"],
    "objective": ["errors", "schedule", "grids", "prediction", "losses", "preconditioning"],
    "importance": [],
    "samplers*": ["errors", "schedule", "grids", "compat", "prediction", "samplers*"],
    "editing": ["errors", "schedule", "grids", "prediction", "samplers*"],
    "step_caching": ["errors", "prediction", "samplers*", "models*"],
    "models*": ["models*"],
    "training": ["errors", "losses", "models*", "config", "ema", "importance"],
    "optimizer": ["config", "importance", "models*"],
    "files": [],
    "manifest": ["files"],
    "interruption": [],
    "hosts": ["errors", "parallel"],
    "platforms": [],
    "memory": [],
    "saved_steps": ["files", "manifest"],
    "ema": [],
    "parallel": [],
    "data*": ["data*", "errors"],
    "pretrained*": ["errors", "models*", "diffusion", "samplers*", "schedule", "recipe", "pretrained*"],
}
MAY_NOT_IMPORT = {"checkpoint": ["training"], "pretrained*": ["training"]}
MODELS_NEED_ONLY = ["jax", "flax", "numpy", "jaxtyping", "ddpm_jax"]
# Modules without a test file of their own, and where their tests are.
TESTED_IN = {
    "recipe": "test_config.py",
    "config_json": "test_config.py",
    "samplers.*": "test_samplers.py",
    "models.layers": "test_layers.py",
    "models.conv3x3": "test_conv3x3.py",
    "models.*": "test_models.py",
    "pretrained.scheduler*": "test_pretrained_scheduler.py",
    "pretrained.torch_pickle": "test_pretrained_hostile.py",
    "pretrained.files": "test_pretrained_hostile.py",
    "pretrained.*": "test_pretrained.py",
    "data.digits": "test_data.py",
}


def name_of(path):
    """ddpm_jax/data/tfds.py as `data.tfds`, ddpm_jax/data/__init__.py as `data`, ddpm_jax/__init__.py as `init`."""
    parts = path.relative_to(ROOT / "ddpm_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "init"


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted((ROOT / "ddpm_jax").rglob("*.py"))}
OTHERS = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("configs/*.py"), *ROOT.glob("benchmarks/*.py")])
}
SOURCES = MODULES | OTHERS
every_module = pytest.mark.parametrize("name", MODULES)
every_source = pytest.mark.parametrize("name", SOURCES)


def imports(tree):
    """Dotted names a tree imports; what follows `from x import` is counted as a module too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    """The modules of ddpm_jax that a module imports, relative to it; `from ddpm_jax import x` included."""
    found = {target.removeprefix("ddpm_jax.") for target in imports(MODULES[name]) if target.startswith("ddpm_jax.")}
    return found & set(MODULES)


def roots(tree):
    return {target.partition(".")[0] for target in imports(tree)}


def matches(name, patterns):
    return any(fnmatch(name, pattern) for pattern in patterns)


def at_import_time(node):
    """The statements of a file that run when it is imported: neither in functions nor for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not late and not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from at_import_time(child)


@every_module
def test_modules_import_what_they_may(name):
    for pattern, allowed in MAY_IMPORT.items():
        if fnmatch(name, pattern):
            assert [target for target in sorted(own_imports(name)) if not matches(target, allowed)] == []
    for pattern, forbidden in MAY_NOT_IMPORT.items():
        if fnmatch(name, pattern):
            assert [target for target in sorted(own_imports(name)) if matches(target, forbidden)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if fnmatch(name, "models*")])
def test_models_need_only_jax_flax_numpy_and_jaxtyping(name):
    assert roots(MODULES[name]) - set(MODELS_NEED_ONLY) <= sys.stdlib_module_names


@every_source
def test_flax_appears_only_under_models(name):
    assert matches(name, ("models*", "benchmarks/*")) or "flax" not in roots(SOURCES[name])


@every_source
def test_pmap_appears_only_in_parallel(name):
    names = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(SOURCES[name])}
    assert name == "parallel" or ("pmap" not in names and "jax.pmap" not in set(imports(SOURCES[name])))


@every_source
def test_scripts_are_imported_by_nobody(name):
    assert roots(SOURCES[name]).isdisjoint(SCRIPTS)


@every_source
def test_no_other_framework_is_needed_to_import(name):
    nodes = [node for node in at_import_time(SOURCES[name]) if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {root for node in nodes for root in roots(ast.Module([node], []))}
    assert name == "benchmarks/torch_side.py" or found.isdisjoint({"tensorflow", "torch", "diffusers"})


@every_module
def test_every_module_has_its_tests(name):
    elsewhere = [file for pattern, file in TESTED_IN.items() if fnmatch(name, pattern)]
    own = f"test_{name.replace('.', '_')}.py"
    assert any((ROOT / "tests" / file).exists() for file in [own, *elsewhere]), f"tests/{own} is missing"


def test_the_rules_are_about_modules_that_exist():
    assert {"schedule", "prediction", "losses", "samplers.ddpm", "models.unet", "training", "parallel"} <= set(MODULES)
    assert own_imports("objective") >= {"losses", "prediction", "schedule", "preconditioning"}
