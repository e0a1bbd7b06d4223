"""Lists the images of a folder, finds identical images, and logs which files are skipped."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kvae.core import files
from kvae.core.errors import InputError, one_line, require_extra
from kvae.data.dataset import ImageSpec
from kvae.data.images import UnreadableImageError, fit_image, image_suffixes, is_deep, open_image, read_image

with require_extra("train"):
    from PIL import Image

log = logging.getLogger(__name__)

SYSTEM_FOLDERS = {"@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}
"""Folders that file servers, operating systems and archives create. Like hidden folders, they are skipped."""

PILLOW_HEIF = (
    "to read HEIC, pip install pillow-heif and call pillow_heif.register_heif_opener() in a file passed to --import"
)
CONVERT = "convert {} to PNG or JPEG"
REMEDIES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), PILLOW_HEIF),
    **dict.fromkeys((".svg", ".svgz", ".pdf", ".ai", ".eps", ".wmf", ".emf"), "render {} as PNG"),
    **dict.fromkeys((".avif", ".jxl", ".jxr", ".exr", ".hdr", ".raw", ".npy"), CONVERT),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".xcf", ".psb"), CONVERT),
    "": "add a suffix, such as .jpg, to files without one",
}
"""Remedies for images that Pillow does not read, by suffix; "" is for files without a suffix."""

DEPTH_SAMPLE = 16
"""Number of images of each suffix whose bit depth is checked."""

SAMPLE_BYTES = 4096
"""Number of bytes compared at the beginning, middle and end of two files, before they are compared in full."""


def image_folder(path: object, where: str) -> pathlib.Path:
    """Returns the folder at a path, with `~` expanded.

    Args:
      path: the folder.
      where: the field or option that holds the path, for messages.

    Raises:
      InputError: the path is not a folder.
    """
    root = files.user_path(where, path)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{where}: {root} {problem}; name a folder of images")
    return root


def list_images(root: pathlib.Path, where: str = "images") -> list[str]:
    """Lists the image files below a folder, as sorted paths relative to it.

    Hidden files, hidden folders and `SYSTEM_FOLDERS` are skipped. Runs of kvae are skipped too, because their figures
    are not data. A file with several links is listed once: under its own name rather than the name of a symbolic link,
    and under the first of several hard links. Files that are not images are counted in the log.

    Args:
      root: the folder.
      where: the field or option that holds the folder's path, for messages.

    Raises:
      InputError: a folder cannot be searched, or there are no images.
    """
    suffixes, names, skipped = image_suffixes(), [], collections.Counter()
    for name in _walk(root):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in suffixes:
            names.append(name)
        else:
            skipped[suffix] += 1
    skipped_text = _describe_skipped(skipped)
    if not names:
        raise InputError(f"{where}: {root} has no images" + f"; it has {skipped_text}" * bool(skipped))
    if skipped:
        level = logging.WARNING if REMEDIES.keys() & skipped.keys() else logging.INFO
        log.log(level, "%s: skipped %s", one_line(str(root)), skipped_text)
    unique = _drop_links(root, sorted(names))
    if len(unique) < len(names):
        log.info("%s: skipped %d links to images that are listed under another name", root, len(names) - len(unique))
    return unique


def _walk(root: pathlib.Path) -> Iterable[str]:
    """Yields the relative paths of the files below a folder, except those that `list_images` skips."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be searched ({error.strerror}); make it readable or move it out of the folder"
        )

    visited = set()
    for folder, subfolders, filenames in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder that has been searched, perhaps to its own parent
            subfolders.clear()
            continue
        visited.add(real)
        if "config.json" in filenames and "checkpoints" in subfolders:
            log.info("skipped %s because it is a run of kvae", one_line(folder))
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in SYSTEM_FOLDERS)
        relative = pathlib.Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in filenames if not name.startswith("."))


def _describe_skipped(counts: collections.Counter, most: int = 5) -> str:
    """Returns the number of files of each suffix, and remedies; suffixes with a remedy come first."""
    ordered = sorted(counts.items(), key=lambda item: (item[0] not in REMEDIES, -item[1], item[0]))
    parts = [f"{count:,} {one_line(suffix)[:12] or 'without a suffix'}" for suffix, count in ordered[:most]]
    if rest := sum(count for _, count in ordered[most:]):
        parts.append(f"{rest:,} others")
    remedies = collections.defaultdict(list)
    for suffix, _ in ordered[:most]:
        if suffix in REMEDIES:
            remedies[REMEDIES[suffix]].append(suffix)
    return "; ".join([", ".join(parts), *(text.format(", ".join(names)) for text, names in remedies.items())])


def _drop_links(root: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Returns one name for each file, without the names that are links to it."""
    by_file: dict[tuple, str] = {}
    for name in names:
        path = root / name
        try:
            status = os.stat(path)
        except OSError:  # a broken link; the error is reported when it is read
            by_file[(name,)] = name
            continue
        key = (status.st_dev, status.st_ino)
        if key not in by_file or (_is_link(root, by_file[key]) and not _is_link(root, name)):
            by_file[key] = name
    return sorted(by_file.values())


def _is_link(root: pathlib.Path, name: str) -> bool:
    return os.path.islink(root / name)


def find_copies(root: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    """Finds files with identical bytes.

    Files of equal size are compared by a sample of their bytes and, if the samples agree, by all their bytes.

    Args:
      root: the folder.
      names: paths of the files, relative to the folder.

    Returns:
      A dict from each copy to the first file in `names` with the same bytes.
    """
    groups = _split_groups([list(names)], lambda name: os.stat(root / name).st_size)
    groups = _split_groups(groups, lambda name: _sample(root / name))
    groups = _split_groups(groups, lambda name: files.digest_of_file(root / name))
    return {name: group[0] for group in groups for name in group[1:]}


def _split_groups(groups: Iterable[list[str]], key: Callable[[str], object]) -> list[list[str]]:
    """Splits groups of files by a key, and drops unreadable files and groups of one file."""

    def safe_key(name: str) -> object:
        try:
            return key(name)
        except OSError:
            return None

    parts = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for group in groups:
            by_key = collections.defaultdict(list)
            for name, value in zip(group, pool.map(safe_key, group), strict=True):
                if value is not None:
                    by_key[value].append(name)
            parts += [part for part in by_key.values() if len(part) > 1]
    return parts


def _sample(path: pathlib.Path) -> bytes:
    """Returns a digest of `SAMPLE_BYTES` at the beginning, middle and end of a file."""
    with files.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        parts = []
        for offset in dict.fromkeys((0, size // 2, max(0, size - SAMPLE_BYTES))):
            file.seek(offset)
            parts.append(file.read(SAMPLE_BYTES))
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def evenly_spaced(names: Sequence[str], most: int) -> list[str]:
    """Returns at most `most` of the names, evenly spaced.

    Example:
      >>> evenly_spaced("abcdef", 3)
      ['a', 'c', 'e']
    """
    step = max(1, -(-len(names) // most))
    return list(itertools.islice(names, 0, None, step))


def warn_of_depth(root: pathlib.Path, names: Sequence[str], white: float, remedy: str) -> None:
    """Logs a warning if grey images with more than 8 bits would be read too dark or too bright.

    Up to `DEPTH_SAMPLE` images of each suffix are checked.

    Args:
      root: the folder.
      names: paths of the images, relative to the folder.
      white: the white level that the user has set; unless it is 0, nothing is checked.
      remedy: how the user sets the white level, for the message, such as "set dataset.white".
    """
    if white:
        return
    by_suffix = collections.defaultdict(list)
    for name in names:
        by_suffix[os.path.splitext(name)[1].lower()].append(name)
    highest = {"integers": 0.0, "floats": 0.0}
    for name in itertools.chain(*(evenly_spaced(group, DEPTH_SAMPLE) for group in by_suffix.values())):
        with contextlib.suppress(UnreadableImageError), open_image(root / name, name, "") as image:
            if is_deep(image):
                kind = "floats" if image.mode == "F" else "integers"
                highest[kind] = max(highest[kind], float(np.nan_to_num(np.asarray(image, np.float64)).max()))
    depth = next((2**bits - 1 for bits in (8, 10, 12, 14) if 0 < highest["integers"] < 2**bits), None)
    if depth:
        log.warning(
            "%s: 16-bit images have no level above %d, but white is 65535, so they look dark; if their white level is "
            "%d, %s=%d", one_line(str(root)), highest["integers"], depth, remedy, depth
        )  # fmt: skip
    if highest["floats"] > 255:
        log.warning(
            "%s: floating-point images have levels up to %g, but white is 255, so they look white; %s to their "
            "white level", one_line(str(root)), highest["floats"], remedy
        )  # fmt: skip


ImageSource = str | os.PathLike | Image.Image


def read_images(source: ImageSource | Sequence[ImageSource], spec: ImageSpec) -> np.ndarray:
    """Reads images in parallel and fits each to a square.

    Args:
      source: a folder, a file, a Pillow image, or a sequence of files and images.
      spec: size and crop of the square.

    Returns:
      uint8 [n, size, size, 3]; the images of a folder are in the order of `list_images`.

    Raises:
      InputError: there are no images, or one cannot be read.

    Example:
      >>> read_images([Image.new("RGB", (60, 40), "red")], ImageSpec(size=32, crop=True)).shape
      (1, 32, 32, 3)
    """
    if isinstance(source, (str, os.PathLike)) and not files.user_path("images", source).is_file():
        root = image_folder(source, "images")
        names = list_images(root)
        warn_of_depth(root, names, spec.white, "set white")
        source = [root / name for name in names]
    is_single = isinstance(source, (str, os.PathLike, Image.Image))
    sources = [source] if is_single else list(source)
    if not sources:
        raise InputError("images: the sequence is empty; give a folder, files, or Pillow images")

    def read(item: ImageSource) -> np.ndarray:
        if isinstance(item, Image.Image):
            try:
                return fit_image(item, *spec)
            except Exception as error:  # Pillow decodes an image only when its pixels are needed
                raise InputError(f"images: a Pillow image is not readable ({error}); replace it") from error
        if not isinstance(item, (str, os.PathLike)):
            raise InputError(f"images: an element is a {type(item).__name__}; give a folder, files, or Pillow images")
        return read_image(files.user_path("images", item), *spec, remedy="replace or remove it")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(read, sources)))
