"""CIFAR-10 and SVHN, prepared once by tensorflow-datasets and held in memory."""

import contextlib
import http.client
import importlib.util
import threading
import urllib.request

from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.fields import CachePath
from kvae.data.dataset import ArrayExamples, Dataset, declare_images
from kvae.data.records import DELETE_TO_PREPARE, data_folder, is_prepared, load_split, manual_folder, prepare

TIMEOUT_SECONDS = 3.0
"""Timeout of the request that asks whether a server has an archive."""

_URLS = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "svhn_cropped": tuple(
        f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat" for part in ("train", "test", "extra")
    ),
}


@declare_images(size=32)
def cifar10(
    data_dir: CachePath = "", train_split: str = "train[:80%]", validation_split: str = "train[80%:]"
) -> Dataset:
    """Loads CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels in ten classes.

    Args:
      data_dir: the data folder of tfds; empty for its default.
      train_split: the training set in tfds's split syntax, such as "train[:80%]" or "train+test".
      validation_split: the validation set, in the same syntax.

    Raises:
      InputError: the data set is not prepared and cannot be prepared, or a split has no examples.
    """
    return _standard("cifar10", data_dir, train_split, validation_split)


@declare_images(size=32)
def svhn(data_dir: CachePath = "", train_split: str = "train", validation_split: str = "test") -> Dataset:
    """Loads SVHN, cropped house numbers of 32 x 32 pixels: 73,257 train, 26,032 test and 531,131 extra digits.

    Args:
      data_dir: the data folder of tfds; empty for its default.
      train_split: the training set in tfds's split syntax, such as "train" or "train+extra".
      validation_split: the validation set, in the same syntax.

    Raises:
      InputError: see `cifar10`.
    """
    return _standard("svhn_cropped", data_dir, train_split, validation_split)


def _standard(name: str, data_dir: str, train_split: str, validation_split: str) -> Dataset:
    with require_extra("train"):
        import tensorflow_datasets as tfds
    root = data_folder(data_dir)
    with wrap_read_errors(root / name, DELETE_TO_PREPARE):
        builder = tfds.builder(name, data_dir=root)
    if not is_prepared(builder) and importlib.util.find_spec("tensorflow") is not None:
        _require_archives(name, data_dir)
    prepare(builder, needs_tensorflow=True)
    return Dataset(
        train=ArrayExamples(load_split(builder, train_split)),
        validation={"validation": ArrayExamples(load_split(builder, validation_split))},
        label_names=tuple(builder.info.features["label"].names),
    )


def _require_archives(name: str, data_dir: str) -> None:
    """Raises InputError if an archive is missing and its server does not answer; tfds would retry for minutes."""
    manual = manual_folder(data_dir)
    for url in _URLS[name]:
        archive = manual / url.rpartition("/")[2]
        if not archive.exists() and not _answers(url):
            raise InputError(
                f"{name} is not in {data_folder(data_dir)}, {archive} does not exist, and {url} does not answer; "
                f"copy the archive to {manual}, or connect this machine to the network"
            )


def _answers(url: str) -> bool:
    """True if the server has the file. The request runs in a thread because a DNS lookup has no timeout."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS),
        ):
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return answered.is_set()
