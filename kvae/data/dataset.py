"""The contract of a data set: the function that loads it, and the examples that the function returns.

A data set is a function, registered by name in `kvae.DATASETS`. It returns a `Dataset`. Its parameters are the fields
of the config section `dataset`, and kvae reads their declarations:

- The annotation of a parameter gives its type and range: `fraction: Annotated[float, Gt(0), Lt(1)] = 0.1`.
- `LocalPath` and `CachePath` of `kvae.core.fields` mark paths on this machine. They are left out of a shared run.
- The docstring's `Args:` describe the fields; `python -m kvae.main --config=FILE --help` prints them.
- `size` and `crop` describe the square that images are fitted to. A data set whose size or crop is fixed has no such
  parameter and declares the value with `declare_images`.

Example:
  >>> import numpy as np, kvae
  >>> from kvae.core.fields import LocalPath
  >>> @kvae.data.declare_images(size=28)
  ... def sketches(root: LocalPath, seed: int = 0) -> kvae.data.Dataset:
  ...     images = np.random.default_rng(seed).integers(0, 256, (10, 28, 28, 3), np.uint8)
  ...     examples = kvae.data.ArrayExamples({"image": images})
  ...     return kvae.data.Dataset(train=examples, validation={"validation": examples})
  >>> kvae.DATASETS["sketches"] = sketches
  >>> len(kvae.data.load("sketches", root="~/sketches").train)
  10
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

Example = Mapping[str, np.ndarray]
"""Arrays by name. Images have `image`, uint8 [h, w, 3], and `label`, int32 [], if the data set has labels."""

MEMORY_BYTES = 2 * 2**30
"""A data set is held in memory if its decoded examples take at most this many bytes. A larger one is read from disk
during training."""


def fits_in_memory(num_bytes: int) -> bool:
    """True if `num_bytes` of decoded examples are held in memory, see `MEMORY_BYTES`."""
    return num_bytes <= MEMORY_BYTES


class Examples(Protocol):
    """Random access to decoded examples that all have the same shapes.

    Several threads call `__getitem__` at the same time. If calls share state, such as the position in an open file,
    open the file in each call or thread, or wrap the examples in `LockedExamples`.

    An optional attribute `names` lists a name for each example, such as the name of its file.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples held in memory.

    Attributes:
      arrays: arrays [n, ...] by name, such as `image` uint8 [n, h, w, 3] and `label` int32 [n].
      names: names of the examples; empty if they have none.

    Example:
      >>> import numpy as np
      >>> ArrayExamples({"image": np.zeros((5, 32, 32, 3), np.uint8)})
      ArrayExamples(image uint8[5, 32, 32, 3])
    """

    arrays: Mapping[str, np.ndarray]
    names: Sequence[str] = ()

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in self.arrays.items())
        return f"ArrayExamples({arrays})"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int | np.ndarray) -> Example:
        """Returns one example for an integer, or a batch for an array of indices."""
        return {name: array[index] for name, array in self.arrays.items()}


class LockedExamples:
    """Wraps examples so that one thread at a time reads them.

    Args:
      examples: examples that several threads must not read at the same time.

    Example:
      >>> LockedExamples(["first", "second"])[1]
      'second'
    """

    def __init__(self, examples: Examples):
        self._examples, self._lock = examples, threading.Lock()
        self.names = getattr(examples, "names", ())

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        with self._lock:
            return self._examples[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """Describes codes in a data set, and the codebook that they come from.

    Attributes:
      shape: shape of the codes of one example: (h', w'), or (h', w', q) for a quantiser with q codebooks.
      size: K, the number of codes of each codebook.
      grid_shape: shape of the grid whose nodes the codes number row by row; () if they have no grid.
      topology: name of the grid in `kvae.GRIDS`.
      codewords: the vector of each code, float32 [K, d], or [q, K, d]; None if it is unknown.
    """

    shape: tuple[int, ...]
    size: int
    grid_shape: tuple[int, ...] = ()
    topology: str = "plane"
    codewords: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The training and validation examples of a data set.

    Attributes:
      train: the training examples.
      validation: one or more validation sets by name; their losses are averaged with equal weight.
      label_names: names of the classes; empty for a data set without labels.
      codebooks: the codebook of each array of codes, by array name; empty for a data set without codes.
    """

    train: Examples
    validation: Mapping[str, Examples]
    label_names: Sequence[str] = ()
    codebooks: Mapping[str, Codebook] = dataclasses.field(default_factory=dict)


class ImageSpec(NamedTuple):
    """The square that images are fitted to.

    Attributes:
      size: side of the square, in pixels.
      crop: True resizes the shorter side to `size` and crops to the centre; False resizes both sides to `size`, which
        changes the aspect ratio. Both use antialiased bilinear interpolation.
      white: the white level of grey images with more than 8 bits, such as 4095 for 12 bits; 0 means 65535 for integers,
        and 1 or 255 for floats.
    """

    size: int
    crop: bool
    white: float = 0


Function = TypeVar("Function", bound=Callable[..., Dataset])


def declare_images(*, size: int | None = None, crop: bool | None = None) -> Callable[[Function], Function]:
    """Returns a decorator that declares the fixed size or crop of a data set without these parameters.

    `kvae.tokenize` and `Run.read_images` use the declared values to fit new images the same way. If nothing is
    declared, images are cropped, and the caller must give their size.

    Args:
      size: side of the images, in pixels.
      crop: see `ImageSpec`.
    """
    fixed = {name: value for name, value in (("size", size), ("crop", crop)) if value is not None}

    def decorate(function: Function) -> Function:
        function.fixed_image_fields = fixed
        return function

    return decorate
