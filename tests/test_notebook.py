"""The notebook runs from top to bottom on a fresh run, and is committed with its pictures."""

import pathlib

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "inspect.ipynb"


def count_pictures(notebook):
    """The number of pictures that each cell shows."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [sum("image/png" in output.get("data", {}) for output in of_cell) for of_cell in outputs]


def test_notebook_runs_from_top_to_bottom(trained_run, monkeypatch):
    monkeypatch.setenv("KVAE_RUN", str(trained_run()))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    executed = NotebookClient(nbformat.from_dict(stored), timeout=300, resources=resources).execute()
    assert count_pictures(executed) == count_pictures(stored)
    assert sum(count_pictures(executed)) == 7


def test_notebook_is_small_and_names_no_machine_s_paths():
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    outputs = [output for cell in nbformat.reads(text, as_version=4).cells for output in cell.get("outputs", [])]
    words = str([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    assert not any(folder in words for folder in ("/tmp", "/home", "/root", "/work", "/Users"))
