"""Data sets of a user's own: mistakes are one line when they are loaded, and threads may share what is locked."""

import concurrent.futures

import numpy as np
import pytest

from kvae import data
from kvae.core.errors import InputError
from kvae.data import ArrayExamples, Dataset, LockedExamples

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
GOOD = ArrayExamples({"image": IMAGES, "label": np.zeros(4, np.int32)})


class Listed(list):
    """Examples in a list, with names if they are set."""


def wrong():
    """A data set that returns nothing."""


def of(**arrays):
    return Dataset(ArrayExamples(arrays), {"validation": ArrayExamples(arrays)})


def named(names):
    examples = Listed([{"image": IMAGES[0]}] * 4)
    examples.names = names
    return Dataset(examples, {"validation": examples})


WRONG = {
    "nothing": (None, "returns a NoneType; it must return a kvae.data.Dataset"),
    "floats": (of(image=IMAGES / 255), "image is float64[8, 8, 3]; it must be uint8[h, w, 3] from 0 to 255; convert"),
    "grey": (of(image=IMAGES[..., 0]), "image is uint8[8, 8]; it must be uint8[h, w, 3]; repeat grey"),
    "one channel": (of(image=IMAGES[..., :1]), "image is uint8[8, 8, 1]; it must be uint8[h, w, 3]"),
    "channels first": (of(image=IMAGES.transpose(0, 3, 1, 2)), "move the channels to the end"),
    "tuples": (Dataset([(IMAGES[0], 1)], {"v": GOOD}), "train: the first example is a tuple; it must be a dict"),
    "validation is a list": (Dataset(GOOD, [GOOD]), "it must be a dict, such as {'validation': examples}"),
    "validation is examples": (Dataset(GOOD, GOOD), "it must be a dict, such as {'validation': examples}"),
    "no validation": (Dataset(GOOD, {}), "it must be a dict, such as {'validation': examples}"),
    "numbered validation": (Dataset(GOOD, {0: GOOD}), "the keys of validation are [0]; they must be strings"),
    "other sizes": (
        Dataset(GOOD, {"v": of(image=IMAGES[:, :4], label=np.zeros(4, np.int32)).train}),
        "'image' is uint8[8, 8, 3] in train and uint8[4, 8, 3] in v; it must be the same in both",
    ),
    "no labels": (Dataset(GOOD, {"v": of(image=IMAGES).train}), "'label' is int32[] in train and missing in v;"),
    "empty": (of(image=IMAGES[:0]), "train has no examples"),
    "lengths": (of(image=IMAGES, label=np.zeros(3, np.int32)), "arrays of the lengths {'image': 4, 'label': 3}"),
    "float labels": (of(image=IMAGES, label=np.zeros(4)), "label is 0.0; it must be an integer"),
    "text labels": (of(image=IMAGES, label=np.array(["cat"] * 4)), "an example must map strings to arrays of numbers"),
    "a generator": (Dataset(iter([]), {"v": GOOD}), "it must have __len__ and __getitem__(index)"),
    "names are None": (named(None), "names is None; it must have one name for each of 4 examples"),
    "too few names": (named(["a"]), "names is ['a']; it must have one name for each of 4 examples"),
    "label_names": (Dataset(GOOD, {"v": GOOD}, (0, 1)), "label_names is (0, 1); it must be a tuple of strings"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistake_is_one_line_at_the_door(monkeypatch, mistake):
    dataset, message = WRONG[mistake]
    monkeypatch.setitem(data.DATASETS, "mine", lambda: dataset)
    with pytest.raises(InputError) as caught:
        data.load("mine")
    assert str(caught.value).startswith("data set 'mine'") and message in str(caught.value)


def test_named_functions_are_checked_too(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "mine", f"{__name__}:wrong")
    with pytest.raises(InputError, match="data set 'mine' returns a NoneType"):
        data.load("mine")
    for entry, reason in [
        (f"{__name__}:rong", "has no attribute 'rong'"),
        ("nonesuch:f", "No module named 'nonesuch'"),
    ]:
        monkeypatch.setitem(data.DATASETS, "mine", entry)
        with pytest.raises(InputError, match=rf"DATASETS\['mine'\] is '{entry}', which cannot be imported: .*{reason}"):
            data.load("mine")
    monkeypatch.setitem(data.DATASETS, "mine", 3)
    with pytest.raises(InputError, match=r"DATASETS\['mine'\] is 3; it must be a function or 'module:function'"):
        data.load("mine")


def test_good_data_sets_are_accepted(monkeypatch):
    tokens = ArrayExamples({"tokens": np.zeros((4, 7), np.int32)})
    for dataset in (Dataset(GOOD, {"v": GOOD}), Dataset(tokens, {"v": tokens}), named(()), named(list("abcd"))):
        monkeypatch.setitem(data.DATASETS, "mine", lambda dataset=dataset: dataset)
        assert data.load("mine") is dataset


class Seeking:
    """Examples of one open file, whose position threads would share."""

    def __init__(self, path, count):
        self.file, self.count = path.open("rb", buffering=0), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.file.seek(4 * index)
        return {"number": np.frombuffer(self.file.read(4), np.int32)[0]}


def test_locked_examples_can_be_shared_by_threads(tmp_path):
    np.arange(20_000, dtype=np.int32).tofile(tmp_path / "numbers")
    seeking = Seeking(tmp_path / "numbers", 20_000)
    examples = LockedExamples(seeking)
    with seeking.file, concurrent.futures.ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(lambda index: examples[index]["number"], range(20_000)))
    assert numbers == list(range(20_000))
