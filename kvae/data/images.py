"""Image files from strangers: listed, opened and fitted to a square, by Pillow alone.

Pillow starts another program for some formats; kvae does not read these.
"""

import concurrent.futures
import contextlib
import functools
import io
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from kvae.core import files
from kvae.core.errors import InputError, first_line, one_line, require_extra
from kvae.data.dataset import ImageSpec

with require_extra("train"):
    from PIL import Image, ImageOps, UnidentifiedImageError

log = logging.getLogger(__name__)

EXCLUDED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow does not decode itself. For EPS it would start Ghostscript, which executes the code in the file;
IPTC may contain EPS."""

REPLACE_OR_SKIP = "replace or remove it, or set dataset.skip_unreadable=True"
"""What a user can do about an unreadable image of the data set `folder`."""


@functools.cache
def pillow_formats() -> tuple[str, ...]:
    """Returns the formats that Pillow decodes without another program; the suffix of a file does not matter."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - EXCLUDED_FORMATS))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of files in `pillow_formats`, in lower case."""
    formats = pillow_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@contextlib.contextmanager
def open_image(source: os.PathLike | bytes, name: str, remedy: str) -> Iterator[Image.Image]:
    """Opens an image, to be decoded within the block.

    Args:
      source: a file, or the bytes of one.
      name: name of the image, for messages.
      remedy: what the user can do if the image cannot be read.

    Raises:
      InputError: the image cannot be read. Corrupted images make Pillow raise nearly anything, so every exception in
        the block counts.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else files.opened(source)
        with file, Image.open(file, formats=pillow_formats()) as image:
            yield image
    except Exception as error:
        why = first_line(error)
        if isinstance(error, UnidentifiedImageError):  # its message shows the repr of a Python object
            why = "none of the formats that Pillow reads"
        raise InputError(f"{name}: not a readable image ({why}); {remedy}") from error


def read_image(path: os.PathLike, size: int, crop: bool, remedy: str = REPLACE_OR_SKIP) -> np.ndarray:
    """Reads an image file and fits it to a square, see `fit_image`; of an animation, the first frame.

    Args:
      path: the file.
      size: see `ImageSpec`.
      crop: see `ImageSpec`.
      remedy: what the user can do if the image cannot be read.

    Returns:
      uint8 [size, size, 3].

    Raises:
      InputError: the image cannot be read.
    """
    with open_image(path, str(path), remedy) as image:
        image.draft(None, (2 * size, 2 * size))  # decodes a much larger JPEG at a fraction of its size
        return fit_image(image, size, crop)


def fit_image(image: Image.Image, size: int, crop: bool) -> np.ndarray:
    """Fits a Pillow image of any mode to a square.

    The image is rotated as EXIF says, and transparency is put on white. Integer grey levels beyond 8 bits are scaled
    from 0..65535; floating-point ones from 0..1, or from 0..255 if any exceeds 1.

    Returns:
      uint8 [size, size, 3].
    """
    fit = ImageOps.fit if crop else Image.Image.resize
    return np.asarray(fit(_to_rgb(ImageOps.exif_transpose(image)), (size, size), Image.Resampling.BILINEAR))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        white = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255
        image = Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def image_folder(path: os.PathLike | str, where: str) -> pathlib.Path:
    """Returns the folder at a path, with `~` expanded.

    Args:
      path: the folder.
      where: the field or option that holds the path, for messages.

    Raises:
      InputError: there is no such folder.
    """
    root = files.user_path(where, path)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{where}: {root} {problem}; name a folder of images")
    return root


def list_images(root: pathlib.Path) -> list[str]:
    """Lists the image files below a folder, as sorted paths relative to it.

    Files and folders whose names begin with a dot are skipped, and so are runs of kvae: their figures are not data.

    Raises:
      InputError: a folder cannot be searched.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be searched ({error.strerror}); make it readable or move it away")

    names, visited = [], set()
    for folder, subfolders, filenames in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to a folder above it
            subfolders.clear()
            continue
        visited.add(real)
        if "config.json" in filenames and "checkpoints" in subfolders:
            log.info("skipped %s: it is a run of kvae", one_line(folder))
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = pathlib.Path(folder).relative_to(root)
        names += [
            (relative / name).as_posix()
            for name in filenames
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in image_suffixes()
        ]
    return sorted(names)


ImageSource = str | os.PathLike | Image.Image


def read_images(source: ImageSource | Sequence[ImageSource], spec: ImageSpec) -> np.ndarray:
    """Reads images in parallel and fits each to a square.

    Args:
      source: a folder, a file, a Pillow image, or a sequence of files and images.
      spec: the square.

    Returns:
      uint8 [n, size, size, 3]; the images of a folder in the order of `list_images`.

    Raises:
      InputError: there are no images, or one cannot be read.

    Example:
      >>> read_images([Image.new("RGB", (60, 40), "red")], ImageSpec(size=32, crop=True)).shape
      (1, 32, 32, 3)
    """
    if isinstance(source, (str, os.PathLike)) and not files.user_path("images", source).is_file():
        root = image_folder(source, "images")
        source = [root / name for name in list_images(root)]
        if not source:
            raise InputError(f"images: {root} holds no images")
    is_single = isinstance(source, (str, os.PathLike, Image.Image))
    sources = [source] if is_single else list(source)
    if not sources:
        raise InputError("images: the sequence is empty; give a folder, files, or Pillow images")

    def read(item: ImageSource) -> np.ndarray:
        if isinstance(item, Image.Image):
            try:
                return fit_image(item, *spec)
            except Exception as error:  # Pillow decodes only now
                raise InputError(f"images: a Pillow image is not readable ({error}); replace it") from error
        if not isinstance(item, (str, os.PathLike)):
            raise InputError(f"images: found a {type(item).__name__}; give a folder, files, or Pillow images")
        return read_image(files.user_path("images", item), *spec, remedy="replace or remove it")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(read, sources)))
