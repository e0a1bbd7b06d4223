"""The data sets by name, and what the training program must know of them."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvae.core.errors import InputError, choose
from kvae.core.fields import validate_fields
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples
from kvae.data.pipeline import evaluation_batches

__all__ = [
    "DATASETS",
    "ArrayExamples",
    "Dataset",
    "Example",
    "Examples",
    "channel_statistics",
    "load",
    "validate_section",
]

DATASETS: dict[str, str | Callable[..., Dataset]] = {
    "photos": "kvae.data.sets.photos:photos",
    "folder": "kvae.data.sets.folder:folder",
    "cifar10": "kvae.data.sets.standard:cifar10",
    "svhn": "kvae.data.sets.standard:svhn",
    "imagenet": "kvae.data.sets.imagenet:imagenet",
    "faces": "kvae.data.sets.faces:faces",
    "digits": "kvae.data.sets.digits:digits",
    "tokens": "kvae.data.sets.tokens:tokens",
}
"""By name, the function that makes a data set, or where it stands: that module is imported when it is asked for."""


def function_of(name: str) -> Callable[..., Dataset]:
    """The function that makes the data set of that name; raises InputError where there is none."""
    found = choose("dataset.name", name, DATASETS)
    return pkgutil.resolve_name(found) if isinstance(found, str) else found


def validate_section(section: Mapping) -> dict[str, Any]:
    """The section `dataset` of a config, without mean and std, with all fields of its data set.

    Raises:
      InputError: an unknown name, or a field that is unknown, missing, of another type or out of range.
    """
    fields = {name: value for name, value in section.items() if name != "name"}
    return {"name": section.get("name"), **validate_fields("dataset", fields, function_of(section.get("name")))}


def load(name: str, **fields) -> Dataset:
    """The data set of a config: `load(**config.dataset)`, without mean and std.

    Args:
      name: one of `DATASETS`.
      **fields: the arguments of that data set's function.

    Raises:
      InputError: there is no such data set or field, or the data set cannot be read.
    """
    section = validate_section({"name": name, **fields})
    return function_of(section.pop("name"))(**section)


def channel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel over all pixels, on the 0-255 scale.

    A channel that never varies gets the standard deviation 1, so that one can divide by it.

    Returns:
      (mean, std), three floats each; rounded to six decimals, so that every machine writes the same config.
    """
    if "image" not in examples[0]:
        found = ", ".join(examples[0])
        raise InputError(f"the model takes images, and the data set has none, but {found}; choose another of either")
    histogram = np.zeros((3, 256), np.int64)
    for batch in evaluation_batches(examples, batch_size=256):
        pixels = batch["image"][batch["mask"]].reshape(-1, 3)
        histogram += [np.bincount(channel, minlength=256) for channel in pixels.T]
    levels = np.arange(256)
    frequency = histogram / histogram.sum(axis=1, keepdims=True)
    mean = np.sum(frequency * levels, axis=1)
    std = np.sqrt(np.sum(frequency * (levels - mean[:, None]) ** 2, axis=1))
    return tuple(mean.round(6).tolist()), tuple(np.where(std > 0, std, 1.0).round(6).tolist())
