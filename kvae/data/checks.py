"""Checks a data set of the user's own when it is loaded, so that a mistake is one line and not an error in training."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvae.core.errors import InputError, short_repr
from kvae.data.dataset import ArrayExamples, Dataset

TO_UINT8 = "convert floats of 0 to 1 with (255 * image).round().astype(np.uint8)"
TO_RGB = "repeat grey images with np.repeat(image[..., None], 3, axis=-1)"


def check_dataset(name: str, dataset: Any) -> Dataset:
    """Returns a data set if it keeps the contract of `kvae.data.dataset`; reads the first example of each split.

    Args:
      name: the data set, for messages.
      dataset: what its function returned.

    Raises:
      InputError: it breaks the contract.
    """
    where = f"the data set {name!r}"
    if not isinstance(dataset, Dataset):
        raise InputError(f"{where} returns a {type(dataset).__name__}; it must return a kvae.data.Dataset")
    if not isinstance(dataset.validation, Mapping) or not dataset.validation:
        kind = short_repr(dataset.validation, 40)
        raise InputError(f"{where} has the validation {kind}; it must be a dict, such as {{'validation': examples}}")
    if not all(isinstance(split, str) for split in dataset.validation):
        raise InputError(
            f"{where} has validation sets named {short_repr([*dataset.validation])}; names must be strings"
        )
    if isinstance(dataset.label_names, str) or not all(isinstance(label, str) for label in dataset.label_names or ()):
        raise InputError(f"{where} has the label_names {short_repr(dataset.label_names)}; they must be strings")
    first = _check_examples(f"{where}: train", dataset.train)
    for split, examples in dataset.validation.items():
        other = _check_examples(f"{where}: {split}", examples)
        for key in first.keys() | other.keys():
            shapes = [f"{example[key].dtype}{list(example[key].shape)}" for example in (first, other) if key in example]
            if len(shapes) < 2 or shapes[0] != shapes[1]:
                raise InputError(f"{where}: {key!r} is not the same in train and {split}: {', '.join(shapes)}")
    return dataset


def _check_examples(where: str, examples: Any) -> dict[str, np.ndarray]:
    """Checks the examples of a split and returns the first."""
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")) or isinstance(examples, Mapping):
        raise InputError(f"{where} is a {type(examples).__name__}; it must have a length and examples by index")
    if isinstance(examples, ArrayExamples):
        lengths = {key: len(array) for key, array in examples.arrays.items() if np.ndim(array)}
        if len(lengths) < len(examples.arrays) or len({*lengths.values()}) != 1:
            raise InputError(f"{where} has arrays of different lengths: {lengths}; they must be [n, ...]")
    if not len(examples):
        raise InputError(f"{where} has no examples")
    names = getattr(examples, "names", ())
    if not isinstance(names, (Sequence, np.ndarray)) or isinstance(names, str) or len(names) not in (0, len(examples)):
        raise InputError(
            f"{where} has the names {short_repr(names, 40)}; list one for each of {len(examples)} examples"
        )
    example = examples[0]
    if not isinstance(example, Mapping) or not example:
        kind = type(example).__name__
        raise InputError(f"{where}: an example is a {kind}; it must be a dict of arrays, such as {{'image': image}}")
    arrays = {key: np.asarray(value) for key, value in example.items()}
    for key, array in arrays.items():
        if not isinstance(key, str) or array.dtype.kind not in "biuf":
            raise InputError(f"{where}: an example has {key!r}: {short_repr(example[key], 40)}; it must be an array")
    _check_image(where, arrays.get("image"))
    label = arrays.get("label")
    if label is not None and label.ndim == 0 and not isinstance(label.item(), numbers.Integral):
        raise InputError(f"{where}: a label is {label.item()}; it must be an integer: label.astype(np.int32)")
    return arrays


def _check_image(where: str, image: np.ndarray | None) -> None:
    if image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        return
    remedy = TO_RGB if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[-1] == 1) else ""
    remedy = TO_UINT8 if image.dtype.kind == "f" else remedy
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3:
        remedy = "move the channels to the end with image.transpose(1, 2, 0)"
    problem = f"{where}: an image is {image.dtype}{list(image.shape)}; it must be uint8[h, w, 3] of 0 to 255"
    raise InputError(f"{problem}; {remedy}" if remedy else problem)
