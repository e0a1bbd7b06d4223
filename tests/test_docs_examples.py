"""The examples in the docstrings of kvae run, and print what they say."""

import doctest
import importlib
import pathlib
import re
from unittest import mock

import pytest

import kvae

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted((ROOT / "kvae").rglob("*.py"))
}
REGISTRIES = (kvae.DATASETS, kvae.GRIDS, kvae.MODELS, kvae.NEIGHBORHOODS, kvae.QUANTIZERS)


@pytest.fixture(autouse=True)
def clean_registries():
    """Takes away what an example adds to a registry."""
    patches = [mock.patch.dict(registry) for registry in REGISTRIES]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


@pytest.mark.parametrize("name", [name for name, text in SOURCES.items() if ">>>" in text])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_example_is_a_doctest():
    for name, text in SOURCES.items():
        assert not re.findall(r"^ *Examples?:\n(?! *>>> )", text, re.MULTILINE), f"{name} has an example without >>>"
