"""Finds codes that do not exist in a codebook."""

import numpy as np


def first_outside(codes: np.ndarray, size: int, lowest: int = 0) -> tuple[int, ...] | None:
    """Returns the position of the first code that is not from `lowest` to `size` - 1; None if there is none.

    Args:
      codes: integers of any shape.
      size: K, the number of codes.
      lowest: the lowest valid code; -1 if -1 marks a dropped codebook.

    Example:
      >>> first_outside(np.array([[0, 3], [4, -1]]), 4)
      (1, 0)
    """
    if not codes.size or (codes.min() >= lowest and codes.max() < size):
        return None
    is_outside = (codes < lowest) | (codes >= size)
    return tuple(map(int, np.unravel_index(is_outside.argmax(), codes.shape)))
