"""The registry of data sets, and functions that load and describe them.

`kvae.data.dataset` documents how to add a data set.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvae.core.errors import InputError, choose, first_line, short_repr
from kvae.core.fields import fields_of, validate_fields
from kvae.data.checks import check_dataset
from kvae.data.dataset import (
    ArrayExamples,
    Codebook,
    Dataset,
    Example,
    Examples,
    ImageSpec,
    LockedExamples,
    declare_images,
)
from kvae.data.pipeline import evaluation_batches

__all__ = [
    "DATASETS",
    "ArrayExamples",
    "Codebook",
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
    "digit_codes": "kvae.data.sets.digits:digit_codes",
    "tokens": "kvae.data.sets.tokens:tokens",
}
"""Maps the name of a data set to its function, or to "module:function", which is imported on first use."""


def function_of(name: str) -> Callable[..., Dataset]:
    """Returns the function that loads the data set `name`.

    Raises:
      InputError: no data set has this name, or its "module:function" cannot be imported.
    """
    entry = choose("dataset.name", name, DATASETS)
    try:
        function = pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not entry.startswith(str(error.name)):
            raise  # the module is there, but a package that it imports is not
        raise InputError(f"DATASETS[{name!r}] is {entry!r}, which cannot be imported: {first_line(error)}") from error
    if not callable(function):
        raise InputError(f"DATASETS[{name!r}] is {short_repr(entry)}; it must be a function or 'module:function'")
    return function


def validate_dataset_section(section: Mapping) -> dict[str, Any]:
    """Validates the section `dataset` of a config, without `mean` and `std`.

    Args:
      section: `name`, and fields of that data set.

    Returns:
      The section with all fields of the data set; fields left out have their defaults.

    Raises:
      InputError: the name is unknown, or a field is unknown, missing, of another type or out of range.
    """
    fields = {name: value for name, value in section.items() if name != "name"}
    return {"name": section.get("name"), **validate_fields("dataset", fields, function_of(section.get("name")))}


def load(name: str, **fields: Any) -> Dataset:
    """Loads a data set.

    Args:
      name: a key of `DATASETS`.
      **fields: the arguments of that data set's function: the fields of `config.dataset` without `mean` and `std`.

    Raises:
      InputError: the name or a field is unknown, the data set cannot be read, or a data set that a user has added
        breaks the contract of `kvae.data.dataset`.

    Example:
      >>> dataset = load("digits")
      >>> dataset.train
      ArrayExamples(image uint8[1442, 32, 32, 3], label int32[1442])
    """
    section = validate_dataset_section({"name": name, **fields})
    function = function_of(section.pop("name"))
    dataset = function(**section)
    # kvae's own sets are not checked, because the checks read examples, which can be slow.
    is_builtin = str(getattr(function, "__module__", None)).startswith(f"{__name__}.sets.")
    return dataset if is_builtin else check_dataset(name, dataset)


def local_paths(section: Mapping) -> set[str]:
    """Returns the names of the fields of a section `dataset` that are paths on this machine.

    These are the fields that the data set declares as `LocalPath` or `CachePath`. If the data set is not registered
    here, for example because another user added it, any string may be a path, so all string fields are returned.

    Example:
      >>> local_paths({"name": "folder", "path": "~/images", "size": 64})
      {'path'}
    """
    if section.get("name") not in DATASETS:
        return {name for name, value in section.items() if isinstance(value, str) and name != "name"}
    fields = fields_of(function_of(section["name"]))
    return {name for name in section if name in fields and fields[name].path}


def cache_paths(section: Mapping) -> set[str]:
    """Returns the names of the fields of a section `dataset` that its data set declares as `CachePath`."""
    if section.get("name") not in DATASETS:
        return set()
    fields = fields_of(function_of(section["name"]))
    return {name for name in local_paths(section) if fields[name].path.is_cache}


def image_spec(section: Mapping, size: int | None = None, crop: bool | None = None) -> ImageSpec:
    """Returns the square that a data set fits its images to, so that other images can be fitted the same way.

    Args:
      section: `config.dataset`.
      size: overrides the data set's size, in pixels.
      crop: overrides the data set's crop, see `ImageSpec`.

    Raises:
      InputError: neither the data set nor `size` gives a size, or the size is not positive.

    Example:
      >>> image_spec({"name": "cifar10"})
      ImageSpec(size=32, crop=True, white=0)
    """
    function = function_of(section["name"]) if section["name"] in DATASETS else None
    fields = {"crop": True, **getattr(function, "fixed_image_fields", {}), **section}
    size = fields.get("size") if size is None else size
    if size is None:
        raise InputError(f"data set {section['name']!r} has no field size; give the size of the images")
    if size < 1:
        raise InputError(f"size is {size}; it must be an integer >= 1")
    return ImageSpec(int(size), bool(fields["crop"] if crop is None else crop), fields.get("white", 0))


def channel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel over all pixels, on the 0-255 scale.

    The standard deviation of a constant channel is reported as 1, so that images can be divided by it.

    Returns:
      (mean, std), three floats each, rounded to six decimals so that every machine writes the same config.

    Raises:
      InputError: the examples have no images.

    Example:
      >>> import numpy as np
      >>> channel_statistics(ArrayExamples({"image": np.full((4, 8, 8, 3), 9, np.uint8)}))
      ((9.0, 9.0, 9.0), (1.0, 1.0, 1.0))
    """
    if "image" not in examples[0]:
        raise InputError(
            f"the model needs images, but the examples of this data set have only {', '.join(examples[0])}; choose "
            "another data set or another model"
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
