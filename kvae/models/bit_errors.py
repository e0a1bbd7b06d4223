"""Codes that are sent over a channel with bit errors."""

import math

import numpy as np


def with_bit_errors(codes: np.ndarray, shape: tuple[int, ...], rate: float, random: np.random.Generator) -> np.ndarray:
    """Returns codes after each of their bits is flipped with probability `rate`.

    The position along each axis of the grid is sent in Gray code, in which neighbouring positions differ in one bit. A
    received position beyond the end of an axis becomes the last position.

    Example:
      >>> import numpy as np
      >>> with_bit_errors(np.array([0, 5, 511]), (16, 32), rate=0.0, random=np.random.default_rng(0))
      array([  0,   5, 511])

    Args:
      codes: Codes, int [...].
      shape: Shape of the grid; (K,) for codes without a grid.
      rate: The bit error rate, from 0 to 1.
      random: The generator of the errors.

    Returns:
      int [...].
    """
    positions = []
    for position, side in zip(np.unravel_index(codes, shape), shape, strict=True):
        bits = math.ceil(math.log2(side))
        flips = (random.random((*codes.shape, bits)) < rate) @ (1 << np.arange(bits))
        sent = (position ^ (position >> 1)) ^ flips
        received = np.bitwise_xor.reduce([sent >> shift for shift in range(bits)], axis=0) if bits else sent
        positions.append(np.minimum(received, side - 1))
    return np.ravel_multi_index(positions, shape)


def binary_shape(size: int) -> tuple[int, ...]:
    """Returns the shape of a grid with two nodes along each axis, so that codes are sent as binary numbers.

    Example:
      >>> binary_shape(8), binary_shape(6)
      ((2, 2, 2), (6,))

    Args:
      size: K, the number of codes. If it is not a power of two, the shape is (K,).
    """
    bits = size.bit_length() - 1
    return (2,) * bits if size == 1 << bits and bits else (size,)
