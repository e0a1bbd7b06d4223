"""The contract of data sets: fields are validated, paths stay on this machine, and nothing heavy is imported early."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kvae import data
from kvae.core.errors import InputError
from kvae.core.fields import CachePath, LocalPath
from kvae.runs import card


@data.declare_images(size=20, crop=False)
def sketches(root: LocalPath, cache: CachePath = "", style: str = "plain") -> data.Dataset:
    """A stranger's data set."""
    examples = data.ArrayExamples({"image": np.zeros((4, 20, 20, 3), np.uint8)})
    return data.Dataset(train=examples, validation={"validation": examples})


SECTION = {"name": "sketches", "root": "/home/ada/sketches", "cache": "/tmp/ada", "style": "bold"}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "sketches", sketches)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cifar"}, "dataset.name is 'cifar'; did you mean 'cifar10'?"),
        (
            {"name": "q"},
            f"dataset.name is 'q'; it must be one of {', '.join(data.DATASETS)}",
        ),
        ({"name": "photos", "sise": 3}, "dataset has no field 'sise'; did you mean 'size'?"),
        ({"name": "digits", "path": "x"}, "dataset has no field 'path'; its fields are size"),
        (
            {"name": "digits", "size": 3},
            "dataset.size is 3; it must be an integer >= 8, because the digits have 8 x 8 pixels",
        ),
        ({"name": "folder", "size": 3}, "dataset.path is missing; it must be a path on this machine"),
        ({"name": "folder", "path": 3}, "dataset.path is 3; it must be a path on this machine"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(InputError) as caught:
        data.load(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["root", "cache"])
def test_declared_path_must_not_be_bucket(registered, name):
    with pytest.raises(InputError, match=rf"dataset\.{name} is gs://b/images; it must be a path"):
        data.load("sketches", **{"root": "", name: "gs://b/images"})


def test_paths_are_declared(registered):
    assert data.local_paths(SECTION) == {"root", "cache"}
    assert data.cache_paths(SECTION) == {"cache"}


def test_any_string_of_unregistered_data_set_may_be_path():
    assert data.local_paths({**SECTION, "count": 3}) == {"root", "cache", "style"}
    assert data.cache_paths(SECTION) == set()


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_path_of_own_data_sets_is_declared(name):
    names = {"data_dir", "path"} & {*data.fields_of(data.function_of(name))}
    section = {"name": name, **dict.fromkeys(names, "")}
    assert data.local_paths(section) == names
    assert data.cache_paths(section) == names - {"path"}


@pytest.mark.parametrize(
    ("section", "spec"),
    [
        ({"name": "cifar10"}, (32, True, 0)),
        ({"name": "imagenet", "size": 64}, (64, False, 0)),
        ({"name": "folder", "size": 48, "crop": False}, (48, False, 0)),
        ({"name": "photos", "size": 64}, (64, True, 0)),
        (SECTION, (20, False, 0)),
    ],
)
def test_data_set_declares_how_images_are_fitted(registered, section, spec):
    assert data.image_spec(section) == spec
    assert data.image_spec(section, size=8, crop=True) == (8, True, 0)


def test_image_size_must_be_known_and_positive():
    with pytest.raises(InputError, match="data set 'tokens' has no field size; give the size of the images"):
        data.image_spec({"name": "tokens"})
    with pytest.raises(InputError, match="size is 0; it must be an integer >= 1"):
        data.image_spec({"name": "folder", "size": 0})


def test_nothing_heavy_is_imported_before_data_are_loaded():
    heavy = {"tensorflow", "tensorflow_datasets", "grain", "array_record", "jax", "skimage", "sklearn"}
    program = f"""
import json, sys
from kvae import data
print(json.dumps(sorted({heavy | {"PIL"}} & {{*sys.modules}})))
for name in data.DATASETS:
    data.validate_dataset_section({{"name": name, **({{"path": "x"}} if name in ("folder", "tokens") else {{}})}})
print(json.dumps(sorted({heavy} & {{*sys.modules}})))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert list(map(json.loads, process.stdout.splitlines())) == [[], []]


def test_missing_package_names_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"sklearn is not installed: pip install -e '.\[som\]'"):
        data.load("digits")


def test_card_shows_no_declared_path(registered):
    run = type("Run", (), {"config": {"dataset": SECTION}, "variables": {}, "metrics": []})()
    text = card._training(run)
    assert "bold" in text and "ada" not in text
