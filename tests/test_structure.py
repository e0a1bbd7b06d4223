"""How the package is built: imports go downwards, no module is long, and `import kvae` is light."""

import ast
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("in_the_project")

ROOT = pathlib.Path(__file__).parents[1]
ABOVE = {
    "core": set(),
    "data": {"core"},
    "grids": {"core"},
    "topology": {"core", "grids"},
    "kohonen": {"topology"},
    "classic": {"core", "kohonen", "topology"},
    "measures": {"core", "kohonen", "topology"},
    "plots": {"core", "measures"},
    "quantizers": {"core", "kohonen", "measures", "topology"},
    "models": {"core", "measures", "plots", "quantizers", "topology"},
    "som": {"classic", "core", "grids", "kohonen", "measures", "plots", "topology"},
    "testing": {"quantizers"},
    "nnx": {"core", "quantizers"},
    "training": {"core", "data", "models", "plots"},
    "main": {"core", "training"},
    "runs": {"core", "data", "grids", "models", "training"},
    "benchmark": {"core", "data", "grids", "main", "measures", "quantizers", "som", "training"},
    "paper": {"core", "data", "kohonen", "main", "measures", "models", "plots", "runs", "som", "topology", "training"},
    "tokenize": {"core", "data", "runs", "training"},
    "report": {"core", "models", "paper", "plots", "runs", "training"},
}
"""What each folder, or file beside the folders, may import of the others: downwards only."""


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([f"kvae.{alias.name}" for alias in node.names] if node.module == "kvae" else [node.module])


def test_imports_go_downwards_only():
    order = list(ABOVE)
    assert all(order.index(other) < order.index(room) for room, others in ABOVE.items() for other in others)
    for path in sorted((ROOT / "kvae").rglob("*.py")):
        room = path.relative_to(ROOT / "kvae").with_suffix("").parts[0]
        if room == "__init__":
            continue
        imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("kvae.")}
        assert imported <= ABOVE[room] | {room}, f"{path} imports {imported - ABOVE[room] - {room}}"
        if room in {"grids", "topology", "kohonen", "classic", "measures"}:
            outside = {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names
            assert outside <= {"jax", "numpy", "kvae"}


def test_no_module_is_long_and_no_function():
    for path in sorted((ROOT / "kvae").rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_import_is_light():
    program = "import sys, kvae; kvae.KohonenVQ; kvae.load; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "tensorflow_datasets", "matplotlib"} & set(loaded)
    bare = subprocess.run(
        [sys.executable, "-c", "import sys, kvae; print(*sys.modules)"], capture_output=True, text=True
    )
    assert not {"jax", "flax", "orbax"} & {name.split(".")[0] for name in bare.stdout.split()}
