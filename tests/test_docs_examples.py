"""The examples in the docstrings of kvae run, and print what they say."""

import doctest
import importlib
import pathlib
import re
import shutil
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


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    """Enters a folder with the project's files, and with the run `runs/smoke` if a text names it."""

    def enter(text):
        for name in ("configs", "tests"):
            (tmp_path / name).symlink_to(ROOT / name)
        if "runs/smoke" in text:
            shutil.copytree(request.getfixturevalue("trained_run")(), tmp_path / "runs" / "smoke")
        monkeypatch.chdir(tmp_path)

    return enter


@pytest.mark.parametrize("name", [name for name, text in SOURCES.items() if ">>>" in text])
def test_examples_run(name, project):
    project(SOURCES[name])
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_example_is_a_doctest():
    for name, text in SOURCES.items():
        examples = re.findall(r"^ *Examples?:\n((?:.*\n){1,4})", text, re.MULTILINE)
        assert all(">>> " in lines for lines in examples), f"{name} has an example without >>>"
