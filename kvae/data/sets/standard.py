"""CIFAR-10 and SVHN, prepared once by tensorflow-datasets and then held in memory."""

import contextlib
import http.client
import importlib.util
import threading
import urllib.request

from kvae.core.errors import InputError
from kvae.data.dataset import ArrayExamples, Dataset
from kvae.data.records import (
    data_folder,
    decoded_once,
    is_prepared,
    manual_folder,
    opened_builder,
    prepare,
)

_ARCHIVES = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "svhn_cropped": tuple(
        f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat" for part in ("train", "test", "extra")
    ),
}


def cifar10(data_dir: str = "", train_split: str = "train[:80%]", validation_split: str = "train[80%:]") -> Dataset:
    """CIFAR-10: 50,000 train and 10,000 test images of 32 x 32 in ten classes.

    Args:
      data_dir: tfds's folder; empty for its default.
      train_split: what to train on, in tfds's split language: "train[:80%]", "train+test", ...
      validation_split: what to validate on.

    Raises:
      InputError: the set is not there and cannot be made; or a split has no examples.
    """
    return _standard("cifar10", data_dir, train_split, validation_split)


def svhn(data_dir: str = "", train_split: str = "train", validation_split: str = "test") -> Dataset:
    """The cropped Street View House Numbers: 73,257 train, 26,032 test, 531,131 extra digits of 32 x 32.

    Args:
      data_dir: tfds's folder; empty for its default.
      train_split: what to train on, in tfds's split language: "train", "train+extra", ...
      validation_split: what to validate on.

    Raises:
      InputError: as `cifar10`.
    """
    return _standard("svhn_cropped", data_dir, train_split, validation_split)


def _standard(name: str, data_dir: str, train_split: str, validation_split: str) -> Dataset:
    import tensorflow_datasets as tfds

    root = data_folder(data_dir)
    builder = opened_builder(root / name, lambda: tfds.builder(name, data_dir=root))
    if not is_prepared(builder) and importlib.util.find_spec("tensorflow") is not None:
        _require_archives(name, data_dir)
    prepare(builder, needs_tensorflow=True)
    return Dataset(
        train=ArrayExamples(decoded_once(builder, train_split)),
        validation={"validation": ArrayExamples(decoded_once(builder, validation_split))},
        label_names=tuple(builder.info.features["label"].names),
    )


def _require_archives(name: str, data_dir: str) -> None:
    """Fails at once where tfds would retry a download for minutes."""
    manual = manual_folder(data_dir)
    for url in _ARCHIVES[name]:
        archive = manual / url.rpartition("/")[2]
        if not archive.exists() and not _answers(url):
            raise InputError(
                f"{name}: not in {data_folder(data_dir)}, there is no {archive}, and {url} does not answer: "
                "put the archive there, or connect this machine"
            )


def _answers(url: str, seconds: float = 3.0) -> bool:
    """Whether the server has the file. Asked in a thread, because looking a host name up knows no timeout."""
    answered = threading.Event()

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(request, timeout=seconds):
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
