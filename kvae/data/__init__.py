"""Data sets by name: `load("photos", size=32)`."""

import difflib
import importlib
import inspect

import numpy as np

from kvae.data.dataset import ArrayExamples, Dataset, Examples
from kvae.errors import InputError

__all__ = ["ArrayExamples", "Dataset", "Examples", "channel_statistics", "load"]

DATASETS = {
    "photos": "photos",
    "folder": "folder",
    "cifar10": "standard",
    "svhn": "standard",
    "imagenet": "imagenet",
    "faces": "faces",
    "digits": "digits",
}
"""The module of each data set; it has a function of the data set's name."""


def load(name: str, **fields) -> Dataset:
    """The data set `name`, made of its `fields` (those of `config.dataset`)."""
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(DATASETS)}"
        raise InputError(f"dataset.name is {name!r}; {hint}")
    function = getattr(importlib.import_module(f"kvae.data.{DATASETS[name]}"), name)
    known = inspect.signature(function).parameters
    for field in fields:
        if field not in known:
            raise InputError(f"dataset {name!r} has no field {field!r}; it has {', '.join(known)}")
    return function(**fields)


def channel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the 0-255 scale."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(examples), 256):
        images = np.stack([examples[i]["image"] for i in range(start, min(start + 256, len(examples)))])
        pixels = images.reshape(-1, 3).astype(np.float64)
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    return tuple(mean.tolist()), tuple(np.sqrt(squares / count - mean**2).tolist())
