"""The notebook runs from top to bottom on a fresh run, and is committed with its pictures."""

import pathlib

import jax
import nbformat
from nbclient import NotebookClient

from kvae.training.train import train

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "inspect.ipynb"


def pictures(notebook):
    """How many pictures each cell shows."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [sum("image/png" in output.get("data", {}) for output in of_cell) for of_cell in outputs]


def test_it_runs_from_top_to_bottom(make_config, tmp_path, monkeypatch):
    train(make_config(steps=2, log_every_steps=2, evaluate_every_steps=2), str(tmp_path / "run"), jax.devices()[:1])
    monkeypatch.setenv("KVAE_RUN", str(tmp_path / "run"))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    ran = NotebookClient(nbformat.from_dict(stored), timeout=300, resources=resources).execute()
    assert pictures(ran) == pictures(stored)
    assert sum(pictures(ran)) == 7


def test_it_is_small_and_holds_no_path_of_a_machine():
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    outputs = [output for cell in nbformat.reads(text, as_version=4).cells for output in cell.get("outputs", [])]
    words = str([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    assert not any(folder in words for folder in ("/tmp", "/home", "/root", "/work", "/Users"))
