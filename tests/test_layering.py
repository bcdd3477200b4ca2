"""Which packages may import which, and which libraries may appear where, read from the source."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ddpm_jax"

# Packages and top-level modules, "rooms" below, from low to high. Rooms on one floor do not import
# each other.
FLOORS = [
    ("draws", "errors", "files", "home", "image_size", "version"),
    ("diffusion", "models", "data", "devices"),
    ("samplers", "training", "settings_json"),
    ("generation",),
    ("config", "pretrained"),
    ("figures", "latent_config"),
    ("evaluation", "text_to_image"),
    ("pipeline", "recipes"),
    ("runs",),
    ("cli",),
    ("evaluate", "export", "statistics"),
]
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
LIBRARIES = {
    "diffusion": {"jax", "numpy", "jaxtyping"},
    "models": {"jax", "flax", "numpy", "jaxtyping"},
}
"""The only libraries that these packages may import, beside ddpm_jax and the standard library."""
ONLY_IN = {
    "flax": ("models",),
    "tyro": ("cli", "config"),
    "huggingface_hub": ("pretrained", "data"),
    "tokenizers": ("text_to_image",),
}
"""Libraries that may appear only in these rooms."""
NEVER = {"torch", "tensorflow", "diffusers", "transformers"}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def room(path: Path) -> str:
    """The package or top-level module of a file; "" for ddpm_jax/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported(tree: ast.AST) -> set[str]:
    """The dotted names that a tree imports; a name after `from x import` counts as a module too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(tree: ast.AST) -> set[str]:
    """The rooms of ddpm_jax that a tree imports."""
    parts = [name.split(".") for name in imported(tree) if name.startswith("ddpm_jax.")]
    return {part[1] for part in parts if part[1] in HEIGHT}


def imported_libraries(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imported(tree)}


def test_every_room_has_a_floor():
    assert {room(path) for path in SOURCES} - {""} == set(HEIGHT)
    assert len(FLOORS) <= 11


def test_rooms_import_only_from_lower_floors():
    wrong = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path, tree in SOURCES.items()
        for other in imported_rooms(tree) - {room(path)}
        if room(path) and HEIGHT[other] >= HEIGHT[room(path)]
    }
    assert wrong == set()


def test_modules_do_not_import_each_other_in_a_circle():
    trees = {}
    for path, tree in SOURCES.items():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        trees[dotted.removesuffix(".__init__")] = tree
    graph = {}
    for name, tree in trees.items():
        targets = imported(tree)
        targets |= {target.rpartition(".")[0] for target in targets}
        graph[name] = (targets & set(trees)) - {name}
    # A package's __init__ may import its own modules, and they may import its definitions.
    for name in graph:
        graph[name] -= {other for other in graph[name] if name.startswith(f"{other}.")}
    graphlib.TopologicalSorter(graph).prepare()


def test_a_user_of_the_training_step_loads_no_config_no_sampler_and_no_command_line():
    rooms = set()
    for path, tree in SOURCES.items():
        if room(path) == "training":
            rooms |= imported_rooms(tree)
    assert rooms <= {"draws", "errors", "diffusion", "models", "training"}


def test_the_loop_does_not_know_the_hub():
    tree = SOURCES[PACKAGE / "runs" / "loop.py"]
    assert imported_rooms(tree).isdisjoint({"pretrained", "cli"})
    assert not any(name.startswith("ddpm_jax.runs.export") for name in imported(tree))


@pytest.mark.parametrize("package", LIBRARIES)
def test_a_package_imports_only_its_libraries(package):
    for path, tree in SOURCES.items():
        if room(path) == package:
            others = imported_libraries(tree) - LIBRARIES[package] - {"ddpm_jax"}
            assert others <= sys.stdlib_module_names, path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_appears_only_in_its_rooms(library):
    rooms = {room(path) for path, tree in SOURCES.items() if library in imported_libraries(tree)}
    assert rooms <= set(ONLY_IN[library])


def test_no_other_framework_is_imported():
    assert [path for path, tree in SOURCES.items() if NEVER & imported_libraries(tree)] == []


def test_pmap_appears_only_in_parallel():
    names = {
        path: {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree)}
        for path, tree in SOURCES.items()
    }
    assert [path.name for path in SOURCES if "pmap" in names[path]] == ["parallel.py"]


def test_random_numbers_are_drawn_in_draws_alone():
    """Where their implementation and types are named. `parallel` takes keys apart to move them."""
    drawing = {
        path.name
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and getattr(node.value, "attr", None) == "random"
        and ast.unparse(node.value) == "jax.random"
        and node.attr not in ("key_data", "key_impl", "wrap_key_data")
    }
    assert drawing == {"draws.py"}


def test_packages_say_what_belongs_in_them():
    """In three to twelve lines; one line is enough for ddpm_jax itself."""
    for path, tree in SOURCES.items():
        if path.name == "__init__.py":
            text = ast.get_docstring(tree) or ""
            assert 3 <= len(text.splitlines()) + 2 * (room(path) == "") <= 12, path
