"""Data sets by name, and what the training program needs to know about them.

See `kvae.data.dataset` for how to add a data set.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvae.core.errors import InputError, choose
from kvae.core.fields import fields_of, validate_fields
from kvae.data.checks import check_dataset
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples, ImageSpec, LockedExamples, declare_images
from kvae.data.pipeline import evaluation_batches

__all__ = [
    "DATASETS",
    "ArrayExamples",
    "Dataset",
    "Example",
    "Examples",
    "ImageSpec",
    "LockedExamples",
    "cache_paths",
    "channel_statistics",
    "declare_images",
    "function_of",
    "image_spec",
    "load",
    "local_paths",
    "validate_dataset_section",
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
"""Maps names to the functions of data sets, or to "module:function", imported when the data set is asked for."""


def function_of(name: str) -> Callable[..., Dataset]:
    """Returns the function of the data set `name`.

    Raises:
      InputError: there is no such data set.
    """
    function = choose("dataset.name", name, DATASETS)
    return pkgutil.resolve_name(function) if isinstance(function, str) else function


def validate_dataset_section(section: Mapping) -> dict[str, Any]:
    """Returns the section `dataset` of a config, without mean and std, with all fields of its data set.

    Raises:
      InputError: the name is unknown, or a field is unknown, missing, of another type or out of range.
    """
    fields = {name: value for name, value in section.items() if name != "name"}
    return {"name": section.get("name"), **validate_fields("dataset", fields, function_of(section.get("name")))}


def load(name: str, **fields: Any) -> Dataset:
    """Loads a data set: `load(**config.dataset)`, without mean and std.

    Args:
      name: a key of `DATASETS`.
      **fields: the arguments of that data set's function.

    Raises:
      InputError: there is no such data set or field, the data set cannot be read, or one that a user has added breaks
        the contract of `kvae.data.dataset`.

    Example:
      >>> dataset = load("digits")
      >>> dataset.train
      ArrayExamples(image uint8[1442, 32, 32, 3], label int32[1442])
    """
    section = validate_dataset_section({"name": name, **fields})
    dataset = function_of(section.pop("name"))(**section)
    is_ours = isinstance(DATASETS[name], str)  # kvae's data sets keep the contract, and may be slow to read
    return dataset if is_ours else check_dataset(name, dataset)


def local_paths(section: Mapping) -> set[str]:
    """Returns the names of the fields in a section `dataset` that are paths on this machine.

    These are the fields that the data set declares as `LocalPath` or `CachePath`. A data set that is not registered
    here, such as another user's, may have any string for a path: all its strings count.

    Example:
      >>> local_paths({"name": "folder", "path": "~/images", "size": 64})
      {'path'}
    """
    if section.get("name") not in DATASETS:
        return {name for name, value in section.items() if isinstance(value, str) and name != "name"}
    fields = fields_of(function_of(section["name"]))
    return {name for name in section if name in fields and fields[name].path}


def cache_paths(section: Mapping) -> set[str]:
    """Returns the names of the fields in a section `dataset` that its data set declares as `CachePath`."""
    if section.get("name") not in DATASETS:
        return set()
    fields = fields_of(function_of(section["name"]))
    return {name for name in local_paths(section) if fields[name].path.is_cache}


def image_spec(section: Mapping, size: int | None = None, crop: bool | None = None) -> ImageSpec:
    """Returns how the images of a data set are fitted, so that other images can be fitted the same way.

    Args:
      section: `config.dataset`.
      size: overrides the data set's size, in pixels.
      crop: overrides the data set's crop, see `ImageSpec`.

    Raises:
      InputError: neither the data set nor `size` gives a size, or it is not positive.

    Example:
      >>> image_spec({"name": "cifar10"})
      ImageSpec(size=32, crop=True, white=0)
    """
    function = function_of(section["name"]) if section["name"] in DATASETS else None
    fields = {"crop": True, **getattr(function, "fixed_image_fields", {}), **section}
    size = fields.get("size") if size is None else size
    if size is None:
        raise InputError(f"the data set {section['name']!r} has no field size; give the size of the images")
    if size < 1:
        raise InputError(f"size is {size}; it must be 1 or larger")
    return ImageSpec(int(size), bool(fields["crop"] if crop is None else crop), fields.get("white", 0))


def channel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation of each channel over all pixels, on the 0-255 scale.

    The standard deviation of a constant channel is reported as 1, so that images can be divided by it.

    Returns:
      (mean, std), three floats each; rounded to six decimals, so that every machine writes the same config.

    Raises:
      InputError: the examples have no images.

    Example:
      >>> import numpy as np
      >>> channel_statistics(ArrayExamples({"image": np.full((4, 8, 8, 3), 9, np.uint8)}))
      ((9.0, 9.0, 9.0), (1.0, 1.0, 1.0))
    """
    if "image" not in examples[0]:
        raise InputError(
            f"the model takes images, but the examples of this data set have {', '.join(examples[0])}; choose another "
            "data set or another model"
        )
    histogram = np.zeros((3, 256), np.int64)
    for batch in evaluation_batches(examples, batch_size=256):
        pixels = batch["image"][batch["mask"]].reshape(-1, 3)
        histogram += [np.bincount(channel, minlength=256) for channel in pixels.T]
    levels = np.arange(256)
    frequency = histogram / histogram.sum(axis=1, keepdims=True)
    mean = np.sum(frequency * levels, axis=1)
    std = np.sqrt(np.sum(frequency * (levels - mean[:, None]) ** 2, axis=1))
    return tuple(mean.round(6).tolist()), tuple(np.where(std > 0, std, 1.0).round(6).tolist())
