"""Reads untrusted image files with Pillow and fits them to a square.

Formats that make Pillow start another program are not read.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from kvae.core import files
from kvae.core.errors import InputError, first_line, require_extra

with require_extra("train"):
    from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

# Pillow only warns of a large image, and raises if it has more than twice as many pixels. kvae reports the exception.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

EXCLUDED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow does not decode itself. For EPS, Pillow starts Ghostscript, which executes code in the file; an
IPTC file may contain EPS."""

REPLACE_OR_SKIP = "replace or remove it, or set dataset.skip_unreadable=True"
"""Remedy for an unreadable image of the data set `folder`."""


class UnreadableImageError(InputError):
    """An image that cannot be read.

    Attributes:
      reason: the cause, without the image's name and the remedy.
    """

    def __init__(self, name: str, reason: str, remedy: str):
        super().__init__(f"{name} is not a readable image ({reason}); {remedy}")
        self.reason = reason


def pillow_formats() -> tuple[str, ...]:
    """Returns the formats that Pillow decodes itself, including those of plugins registered since the last call."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - EXCLUDED_FORMATS))


def image_suffixes() -> frozenset[str]:
    """Returns the file suffixes of `pillow_formats`, in lower case."""
    formats = pillow_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


@contextlib.contextmanager
def open_image(source: os.PathLike | bytes, name: str, remedy: str) -> Iterator[Image.Image]:
    """Opens an image, which the caller decodes inside the `with` block.

    Args:
      source: a file, or the bytes of one.
      name: name of the image, for messages.
      remedy: what the user can do if the image cannot be read.

    Raises:
      UnreadableImageError: the image cannot be read. Pillow raises many types of exceptions for corrupted images, so
        any exception in the block is turned into this one.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else files.opened(source)
        with file, Image.open(file, formats=pillow_formats()) as image:
            yield image
    except Exception as error:
        why = first_line(error)
        if isinstance(error, UnidentifiedImageError):  # its message contains the repr of a file object
            why = "none of the formats that Pillow reads"
        if isinstance(error, Image.DecompressionBombError):
            limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
            why = f"more than {limit:.0f} million pixels: resize it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        raise UnreadableImageError(name, why, remedy) from error


def read_image(path: os.PathLike, size: int, crop: bool, white: float = 0, remedy: str = REPLACE_OR_SKIP) -> np.ndarray:
    """Reads an image file, or the first frame of an animation, and fits it to a square, see `fit_image`.

    Args:
      path: the file.
      size: see `ImageSpec`.
      crop: see `ImageSpec`.
      white: see `ImageSpec`.
      remedy: what the user can do if the image cannot be read.

    Returns:
      uint8 [size, size, 3].

    Raises:
      UnreadableImageError: the image cannot be read.
    """
    with open_image(path, str(path), remedy) as image:
        image.draft(None, (2 * size, 2 * size))  # decodes a large JPEG at reduced size, which is faster
        return fit_image(image, size, crop, white)


def fit_image(image: Image.Image, size: int, crop: bool, white: float = 0) -> np.ndarray:
    """Fits a Pillow image of any mode to a square.

    The image is rotated by its EXIF orientation, and transparent pixels are blended with white. Colours of an embedded
    profile, such as Display P3, are converted to sRGB. Grey images with more than 8 bits are scaled so that the level
    `white` becomes 255. If `white` is 0, the white level is 65535 for integers; for floats it is 1, or 255 if any level
    exceeds 1.

    Args:
      image: the image.
      size: see `ImageSpec`.
      crop: see `ImageSpec`.
      white: see `ImageSpec`.

    Returns:
      uint8 [size, size, 3].
    """
    fit = ImageOps.fit if crop else Image.Image.resize
    # Converting the fitted image is faster than converting the whole image.
    return np.asarray(upright_rgb(image, white, lambda image: fit(image, (size, size), Image.Resampling.BILINEAR)))


def upright_rgb(
    image: Image.Image, white: float = 0, resize: Callable[[Image.Image], Image.Image] = lambda image: image
) -> Image.Image:
    """Returns a Pillow image of any mode as upright 8-bit sRGB, see `fit_image`.

    Args:
      image: the image.
      white: see `ImageSpec`.
      resize: changes the size of the RGB image.
    """
    image, profile = ImageOps.exif_transpose(image), image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, profile = _in_srgb(image, profile), None
    return _in_srgb(resize(_to_rgb(image, white)), profile)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts an RGB or CMYK image from its ICC profile to sRGB; without a usable profile, returns it unchanged."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source) or source.profile.xcolor_space.strip() != image.mode:
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # other programs ignore a corrupted profile too
        return image


def is_deep(image: Image.Image) -> bool:
    """True if an image has grey levels with more than 8 bits, integer or floating-point."""
    return image.mode == "F" or image.mode.startswith("I")


def _to_rgb(image: Image.Image, white: float) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB; see `fit_image` for `white`."""
    if is_deep(image):  # Pillow would clip these at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        white = white or (65535 if image.mode != "F" else 1 if values.max() <= 1 else 255)
        image = Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image).convert("RGB")
