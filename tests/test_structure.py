"""The package has no import circle, no import upwards, no long file, and a light `import kvae`."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("in_the_project")

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "kvae").rglob("*.py"))
ABOVE = {
    "core": set(),
    "data": {"core"},
    "grids": {"core"},
    "topology": {"core", "grids"},
    "kohonen": {"core", "topology"},
    "classic": {"core", "kohonen", "topology"},
    "measures": {"core", "kohonen", "topology"},
    "plots": {"core", "measures"},
    "quantizers": {"core", "grids", "kohonen", "measures", "topology"},
    "models": {"core", "grids", "measures", "plots", "quantizers", "topology"},
    "som": {"classic", "core", "grids", "kohonen", "measures", "plots", "topology"},
    "testing": {"quantizers"},
    "nnx": {"core", "quantizers"},
    "training": {"core", "data", "models", "plots"},
    "runs": {"core", "data", "grids", "models", "quantizers", "training"},
    "tokenize": {"core", "data", "grids", "runs", "training"},
    "main": {"core", "tokenize", "training"},
    "benchmark": {"core", "data", "grids", "kohonen", "main", "measures", "quantizers", "som", "training"},
    "paper": {"core", "data", "kohonen", "main", "measures", "models", "plots", "runs", "som", "topology", "training"},
    "sample": {"core", "plots", "runs", "tokenize", "training"},
    "report": {"core", "models", "paper", "plots", "runs", "training"},
}
"""Maps each room of kvae to the rooms that it may import; a room may import only rooms above it in this table."""

MATHS = {"grids", "topology", "kohonen", "classic", "measures"}
MAY_OCCUR_TWICE = {"__init__", "__main__", "model"}
"""File names that several folders may have."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(path, top_level=False):
    """Yields the modules and names that a file imports; with `top_level` only what it imports when it is imported."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def test_imports_go_down_only():
    order = list(ABOVE)
    assert all(order.index(other) < order.index(room) for room, others in ABOVE.items() for other in others)
    for path in FILES:
        room = path.relative_to(ROOT / "kvae").with_suffix("").parts[0]
        if room == "__init__":
            continue
        imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("kvae.")}
        assert imported <= ABOVE[room] | {room}, f"{path} imports {imported - ABOVE[room] - {room}}"
        if room in MATHS:
            outside = {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names
            assert outside <= {"jax", "numpy", "kvae"}


def test_no_import_circle():
    names = MODULES.keys() - {"kvae"}
    graph = {name: {*imports_of(MODULES[name], top_level=True)} & names - {name} for name in names}
    assert len([*graphlib.TopologicalSorter(graph).static_order()]) == len(names)


def test_rooms_are_few():
    entries = {path.relative_to(ROOT / "kvae").with_suffix("").parts[0] for path in FILES}
    assert len(entries) <= 22  # 21, and `sample` for `python -m kvae.sample`
    assert entries == {*ABOVE, "__init__"}


def test_file_names_occur_once():
    names = [path.stem for path in FILES if path.stem not in MAY_OCCUR_TWICE]
    assert {name for name in names if names.count(name) > 1} == set()


def test_no_file_is_long_and_no_function():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_import_is_light():
    program = "import sys, kvae; print(*sys.modules); kvae.KohonenVQ; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    bare, layer = (line.split() for line in output.splitlines())
    assert not {"jax", "flax", "numpy"} & {*bare}
    heavy = {"PIL", "grain", "matplotlib", "ml_collections", "sklearn", "tensorflow", "tensorflow_datasets"}
    assert not heavy & {*layer}
    assert {name.split(".")[1] for name in layer if name.startswith("kvae.")} == {
        *("core", "grids", "topology", "kohonen", "measures", "quantizers")
    }
