"""Checks that an array holds images, with the same message for layers, data sets, runs and figures."""

from typing import Any

import numpy as np

from kvae.core.errors import InputError

IMAGE_STATISTICS = ("mean", "std")
"""Fields of a model that normalises images. In a config they are in the section `dataset`, because the data decide."""


def check_images(name: str, images: Any, leading: int = 1) -> None:
    """Raises InputError unless an array holds RGB images as uint8; float images might be normalised already.

    Example:
      >>> check_images("images", np.zeros((32, 32, 3), np.uint8))
      Traceback (most recent call last):
      kvae.core.errors.InputError: images are uint8[32, 32, 3]; they must be uint8[b, h, w, 3]; pass images[None]

    Args:
      name: Name of the images in the message.
      images: A NumPy or JAX array, also inside `jit`.
      leading: Number of axes before height, width and channels; 0 for a single image.
    """
    dtype, shape = images.dtype, images.shape
    if dtype == np.uint8 and len(shape) == leading + 3 and shape[-1] == 3 and 0 not in shape:
        return
    verb, pronoun = ("are", "they") if leading else ("is", "it")
    expected = ", ".join([*["b"] * leading, "h", "w", "3"])
    raise InputError(
        f"{name} {verb} {dtype}{list(shape)}; {pronoun} must be uint8[{expected}]{_remedy(dtype, shape, leading)}"
    )


def _remedy(dtype: Any, shape: tuple[int, ...], leading: int) -> str:
    array = "images" if leading else "image"
    if dtype.kind in "OSU":
        return "; run.read_images reads files and Pillow images"
    if dtype.kind == "f":
        return f" from 0 to 255; convert floats from 0 to 1 with (255 * {array}).round().astype(np.uint8)"
    if dtype != np.uint8:
        return " from 0 to 255"
    if len(shape) == leading + 2 and shape[-1] == 3 and leading:
        return f"; pass {array}[None]"
    if len(shape) == leading + 3 and shape[leading] == 3:
        return f"; move the channels to the end with np.moveaxis({array}, {leading}, -1)"
    if len(shape) == leading + 2 or (len(shape) == leading + 3 and shape[-1] == 1):
        last = "" if len(shape) == leading + 3 else "[..., None]"
        return f"; repeat grey images with np.repeat({array}{last}, 3, axis=-1)"
    return ""
