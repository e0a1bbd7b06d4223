"""The user's own images, made to fit what a data set holds: for a model that was trained on it."""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from kvae.data.folder import existing_folder, fitted, image_names, read_image
from kvae.errors import InputError


class Form(NamedTuple):
    """What an image is made to fit.

    Attributes:
      size: edge of the square, in pixels.
      crop: resize the shorter side to `size` and keep the middle; otherwise give up the aspect ratio. Both are
        antialiased bilinear.
    """

    size: int
    crop: bool


FIXED: dict[str, Mapping] = {
    "cifar10": {"size": 32},
    "svhn": {"size": 32},
    "imagenet": {"crop": False},
    "faces": {"crop": False},
}
"""By name of a data set, what it does to images without a field that says so."""


def form_of(section: Mapping, size: int | None = None, crop: bool | None = None) -> Form:
    """How images of the user's become such as those of a data set.

    Args:
      section: `config.dataset`.
      size, crop: instead of the data set's.

    Raises:
      InputError: neither says how large, or the size is not positive.
    """
    known = {"crop": True, **FIXED.get(section["name"], {}), **section}
    size = known.get("size") if size is None else size
    if size is None:
        raise InputError(f"the data set {section['name']!r} has no field size; give the size of the images")
    if size < 1:
        raise InputError(f"size is {size}; it must be 1 or larger")
    return Form(int(size), bool(known["crop"] if crop is None else crop))


def read_images(source, form: Form) -> np.ndarray:
    """Images uint8 [n, size, size, 3]: see `kvae.run.Run.read_images`."""
    if isinstance(source, (str, os.PathLike)) and not pathlib.Path(source).expanduser().is_file():
        root = existing_folder(source, "images")
        source = [root / name for name in image_names(root)]
        if not source:
            raise InputError(f"images: {root} holds no images")
    one = isinstance(source, (str, os.PathLike, Image.Image))
    sources = [source] if one else list(source)
    if not sources:
        raise InputError("images: there are none; give a folder, files, or images of Pillow's")

    def read(item):
        if isinstance(item, Image.Image):
            try:
                return fitted(item, *form)
            except Exception as error:  # Pillow decodes only now
                raise InputError(f"images: an image of Pillow's is not readable ({error}); replace it") from error
        if not isinstance(item, (str, os.PathLike)):
            raise InputError(f"images: found a {type(item).__name__}; give a folder, files, or images of Pillow's")
        return read_image(pathlib.Path(item).expanduser(), *form, remedy="replace or remove it")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(read, sources)))
