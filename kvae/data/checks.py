"""Checks a data set that a user has added when it is loaded, so that mistakes are reported before training."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvae.core.errors import InputError, short_repr
from kvae.core.image_arrays import check_images
from kvae.data.dataset import ArrayExamples, Dataset


def check_dataset(name: str, dataset: Any) -> Dataset:
    """Checks that a data set meets the contract of `kvae.data.dataset`; reads the first example of each split.

    Args:
      name: name of the data set, for messages.
      dataset: the return value of its function.

    Returns:
      The data set.

    Raises:
      InputError: the data set breaks the contract.
    """
    where = f"data set {name!r}"
    if not isinstance(dataset, Dataset):
        raise InputError(f"{where} returns a {type(dataset).__name__}; it must return a kvae.data.Dataset")
    if not isinstance(dataset.validation, Mapping) or not dataset.validation:
        value = short_repr(dataset.validation, 40)
        raise InputError(f"{where}: validation is {value}; it must be a dict, such as {{'validation': examples}}")
    if not all(isinstance(split, str) for split in dataset.validation):
        raise InputError(
            f"{where}: the keys of validation are {short_repr([*dataset.validation])}; they must be strings"
        )
    if isinstance(dataset.label_names, str) or not all(isinstance(label, str) for label in dataset.label_names or ()):
        raise InputError(f"{where}: label_names is {short_repr(dataset.label_names)}; it must be a tuple of strings")
    first = _check_examples(f"{where}: train", dataset.train)
    for split, examples in dataset.validation.items():
        other = _check_examples(f"{where}: {split}", examples)
        for key in first.keys() | other.keys():
            kinds = [_dtype_and_shape(example.get(key)) for example in (first, other)]
            if kinds[0] != kinds[1]:
                raise InputError(
                    f"{where}: {key!r} is {kinds[0]} in train and {kinds[1]} in {split}; it must be the same in both"
                )
    return dataset


def _dtype_and_shape(array: np.ndarray | None) -> str:
    """Returns, for example, "uint8[32, 32, 3]"; "missing" for None."""
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def _check_examples(where: str, examples: Any) -> dict[str, np.ndarray]:
    """Checks the examples of a split and returns the first example."""
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")) or isinstance(examples, Mapping):
        raise InputError(f"{where} is a {type(examples).__name__}; it must have __len__ and __getitem__(index)")
    if isinstance(examples, ArrayExamples):
        lengths = {key: len(array) for key, array in examples.arrays.items() if np.ndim(array)}
        if len(lengths) < len(examples.arrays) or len({*lengths.values()}) != 1:
            raise InputError(f"{where} has arrays of the lengths {lengths}; all must be [n, ...] with the same n")
    if not len(examples):
        raise InputError(f"{where} has no examples; it must have at least one")
    names = getattr(examples, "names", ())
    if not isinstance(names, (Sequence, np.ndarray)) or isinstance(names, str) or len(names) not in (0, len(examples)):
        raise InputError(
            f"{where}: names is {short_repr(names, 40)}; it must have one name for each of {len(examples)} examples"
        )
    example = examples[0]
    if not isinstance(example, Mapping) or not example:
        kind = type(example).__name__
        raise InputError(f"{where}: the first example is a {kind}; it must be a dict, such as {{'image': image}}")
    arrays = {key: np.asarray(value) for key, value in example.items()}
    for key, array in arrays.items():
        if not isinstance(key, str) or array.dtype.kind not in "biuf":
            value = short_repr(example[key], 40)
            raise InputError(f"{where}: {key!r} is {value}; an example must map strings to arrays of numbers")
    if "image" in arrays:
        check_images(f"{where}: image", arrays["image"], leading=0)
    label = arrays.get("label")
    if label is not None and label.ndim == 0 and not isinstance(label.item(), numbers.Integral):
        raise InputError(
            f"{where}: label is {label.item()}; it must be an integer; convert it with label.astype(np.int32)"
        )
    return arrays
