"""The data sets by name, and what the training program must know of them."""

import difflib
import importlib
import inspect

import numpy as np

from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples
from kvae.data.pipeline import evaluation_batches
from kvae.errors import InputError

__all__ = ["DATASETS", "ArrayExamples", "Dataset", "Example", "Examples", "channel_statistics", "load"]

DATASETS = {
    "photos": "kvae.data.photos",
    "folder": "kvae.data.folder",
    "cifar10": "kvae.data.standard",
    "svhn": "kvae.data.standard",
    "imagenet": "kvae.data.imagenet",
    "faces": "kvae.data.faces",
    "digits": "kvae.data.digits",
}
"""Where the function of each data set lives. It has the data set's name, and is imported when it is asked for."""


def load(name: str, **fields) -> Dataset:
    """The data set of a config: `load(**config.dataset)`, without mean and std.

    Args:
      name: one of `DATASETS`.
      **fields: the arguments of that data set's function.

    Raises:
      InputError: there is no such data set or field, or the data set cannot be read.
    """
    if name not in DATASETS:
        raise InputError(f"dataset.name is {name!r}; {_nearest(name, DATASETS)}")
    function = getattr(importlib.import_module(DATASETS[name]), name)
    parameters = inspect.signature(function).parameters
    for field in fields:
        if field not in parameters:
            raise InputError(f"dataset.{field} is no field of the data set {name!r}; {_nearest(field, parameters)}")
    for field, parameter in parameters.items():
        if parameter.default is parameter.empty and field not in fields:
            raise InputError(f"dataset.{field} is missing; the data set {name!r} needs it")
    return function(**fields)


def _nearest(name: str, names) -> str:
    near = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"


def channel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel over all pixels, on the 0-255 scale.

    A channel that never varies gets the standard deviation 1, so that one can divide by it.

    Returns:
      (mean, std), three floats each; rounded to six decimals, so that every machine writes the same config.
    """
    histogram = np.zeros((3, 256), np.int64)
    for batch in evaluation_batches(examples, batch_size=256):
        pixels = batch["image"][batch["mask"]].reshape(-1, 3)
        histogram += [np.bincount(channel, minlength=256) for channel in pixels.T]
    levels = np.arange(256)
    frequency = histogram / histogram.sum(axis=1, keepdims=True)
    mean = np.sum(frequency * levels, axis=1)
    std = np.sqrt(np.sum(frequency * (levels - mean[:, None]) ** 2, axis=1))
    return tuple(mean.round(6).tolist()), tuple(np.where(std > 0, std, 1.0).round(6).tolist())
