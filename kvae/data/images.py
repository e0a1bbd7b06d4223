"""Pictures that others made, opened in one place: by Pillow itself, and by no program that it would start."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from kvae import files
from kvae.errors import InputError, first_line

NOT_OUR_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow knows by name only, or hands to another program: Ghostscript would run what an EPS file says, and
IPTC may wrap one."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes by itself, whatever a file's name ends in."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - NOT_OUR_FORMATS))


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files in these formats, in lower case."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


@contextlib.contextmanager
def opened_image(source: os.PathLike | bytes, name: str, remedy: str) -> Iterator[Image.Image]:
    """Opens a picture, to be decoded within the block.

    Args:
      source: a file, or what stands in one.
      name: of the picture, for messages.
      remedy: what would do where it cannot be read.

    Raises:
      InputError: it cannot be read. Damaged pictures make Pillow raise nearly anything, so whatever is raised in the
        block is taken for that.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else files.opened(source)
        with file, Image.open(file, formats=formats()) as image:
            yield image
    except Exception as error:
        why = first_line(error)
        if isinstance(error, UnidentifiedImageError):  # its message names an object of Python
            why = "none of the formats that Pillow reads"
        raise InputError(f"{name}: not a readable image ({why}); {remedy}") from error
