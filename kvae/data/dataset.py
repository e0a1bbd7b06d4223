"""What every data set hands to the training program."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

Example = Mapping[str, np.ndarray]
"""Arrays by name: those of images have `image` uint8 [h, w, 3], and `label` int32 [] where the set has labels."""


class Examples(Protocol):
    """Random access to decoded examples, all of one shape.

    Examples that have names, such as files, list them in an attribute `names`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples held in memory.

    Attributes:
      arrays: [n, ...] by name, such as `image` uint8 [n, h, w, 3] and `label` int32 [n].
      names: of the examples, if they have any.
    """

    arrays: Mapping[str, np.ndarray]
    names: Sequence[str] = ()

    def __repr__(self):
        arrays = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in self.arrays.items())
        return f"ArrayExamples({arrays})"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index) -> Example:
        """One example for an integer, a batch for an array of indices."""
        return {name: array[index] for name, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, split and ready to be read.

    Attributes:
      train: the training examples.
      validation: one or more validation sets by name; their losses are averaged with equal weight.
      label_names: the classes, where the set has labels; otherwise empty.
    """

    train: Examples
    validation: Mapping[str, Examples]
    label_names: Sequence[str] = ()
