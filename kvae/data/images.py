"""Pictures that others made, opened in one place: by Pillow itself, and by no program that it would start."""

import concurrent.futures
import contextlib
import functools
import io
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kvae.core import files
from kvae.core.errors import InputError, first_line, one_line

log = logging.getLogger(__name__)

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


SKIP = "replace or remove it, or set dataset.skip_unreadable=True"


def read_image(path: os.PathLike, size: int, crop: bool, remedy: str = SKIP) -> np.ndarray:
    """An image file as uint8 [size, size, 3]; of several frames, the first.

    Turned upright as EXIF says; transparency lies over white; integer grey beyond 8 bits is taken to end at 65535,
    floating-point grey at 1, or at 255 where it goes beyond 1.

    Raises:
      InputError: it cannot be read.
    """
    with opened_image(path, str(path), remedy) as file:
        file.draft(None, (2 * size, 2 * size))  # a JPEG much larger than that decodes at a fraction of its size
        return fitted(file, size, crop)


def fitted(image: Image.Image, size: int, crop: bool) -> np.ndarray:
    """An image of Pillow's as `read_image` gives it."""
    fit = ImageOps.fit if crop else Image.Image.resize
    return np.asarray(fit(_rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BILINEAR))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        white = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
        image = Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def existing_folder(path: os.PathLike | str, where: str) -> pathlib.Path:
    """The folder at a path, `~` understood; an InputError that opens with `where` if there is none."""
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{where}: {root} {what}; name a folder of images")
    return root


def image_names(root: pathlib.Path) -> list[str]:
    """The paths below `root` of the files that Pillow reads by their suffix, sorted."""

    def refuse(error):
        raise InputError(f"{error.filename}: cannot be searched ({error.strerror}); make it readable or move it away")

    names, seen = [], set()
    for here, folders, filenames in os.walk(root, onerror=refuse, followlinks=True):
        where = os.path.realpath(here)
        folders[:] = [] if where in seen else sorted(name for name in folders if not name.startswith("."))
        if where in seen:  # a link that leads back
            continue
        seen.add(where)
        if "config.json" in filenames and "checkpoints" in folders:
            log.info("%s is a run of kvae: its figures are no images of yours", one_line(here))
            folders.clear()
            continue
        below = pathlib.Path(here).relative_to(root)
        names += [
            (below / name).as_posix()
            for name in filenames
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes()
        ]
    return sorted(names)


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
    """Images uint8 [n, size, size, 3]: see `kvae.runs.run.Run.read_images`."""
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
