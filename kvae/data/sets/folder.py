"""Any folder of the user's images."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt

from kvae.core.errors import InputError, one_line, require_extra, short_repr
from kvae.core.fields import LocalPath, NotNegative, Size
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples, ImageSpec, fits_in_memory
from kvae.data.images import REPLACE_OR_SKIP, UnreadableImageError, read_image
from kvae.data.listing import find_copies, image_folder, list_images, warn_of_depth

log = logging.getLogger(__name__)


def folder(
    path: LocalPath,
    size: Size = 64,
    crop: bool = True,
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
    skip_unreadable: bool = False,
    white: NotNegative = 0.0,
) -> Dataset:
    """The images below a folder, of any format and mode that Pillow reads, as size x size x 3.

    Files with other suffixes are counted in the log; hidden files are ignored. A hash of the image's path decides
    whether it is for training or validation, so new images do not move the others. A file with several names, by
    links, is one image; copies of equal bytes are all kept, and the hash of the first decides for all. If every image
    is in a subfolder of `path`, the name of the first subfolder in its path is its label.

    Args:
      path: the folder; its subfolders are searched too.
      size: side of the images, in pixels.
      crop: resize the shorter side to `size` and crop to the centre; otherwise resize both sides, which changes the
        aspect ratio. Both use antialiased bilinear interpolation.
      validation_fraction: approximate fraction of the images for validation, between 0 and 1; at least one image is
        for validation and one for training.
      skip_unreadable: leave out unreadable images and log their number; a folder too large for memory is then read
        once before training. Otherwise an unreadable image is an error, before training, or, in such a folder, when
        training reaches it.
      white: the level that is white in grey images beyond 8 bits, such as 4095 for 12 bits; 0 means 65535 for integers,
        and for floats 1, or 255 if a level exceeds 1.

    Raises:
      InputError: there is no such folder, it holds fewer than two images, an image cannot be read, or a field is out
        of range.
    """
    if not path:
        raise InputError("dataset.path is empty; name a folder of images with --config.dataset.path=DIR")
    root, spec = image_folder(path, "dataset.path"), ImageSpec(size, crop, white)
    examples, classes = folder_examples(root, spec, "dataset.path")
    _require_two(examples.root, len(examples))
    is_readable = np.ones(len(examples), bool)
    images = None
    if fits_in_memory(len(examples) * size * size * 3):
        images = np.empty((len(examples), size, size, 3), np.uint8)
    if images is not None or skip_unreadable:
        is_readable = _read_all(examples, images, skip_unreadable)
        _require_two(examples.root, np.count_nonzero(is_readable), " readable")
    readable = np.flatnonzero(is_readable)
    validates = _is_validation(examples.root, examples.names[readable], validation_fraction)
    train, validation = (_select(examples, images, readable[part]) for part in (~validates, validates))
    return Dataset(train, {"validation": validation}, classes)


def folder_examples(
    root: pathlib.Path, spec: ImageSpec, where: str, remedy: str = REPLACE_OR_SKIP
) -> tuple["FolderExamples", tuple[str, ...]]:
    """Returns all images below a folder, in the order of their paths, and the names of their classes, see `folder`.

    Args:
      root: the folder.
      spec: how images are fitted to a square.
      where: the field or option that names the folder, for messages.
      remedy: what the user can do if an image cannot be read.

    Raises:
      InputError: there are no images, or a folder cannot be searched.
    """
    names = np.array(list_images(root, where), dtype=object)
    field = "dataset.white" if where == "dataset.path" else "dataset.white, in training,"
    warn_of_depth(root, names, spec.white, field)
    labels, classes = _labels(names)
    return FolderExamples(root, names, spec, labels, remedy), classes


def _labels(names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the label of each image, int32 [n], and the classes; None and () if an image is in no subfolder."""
    subfolders = [name.partition("/")[0] if "/" in name else None for name in names]
    if None in subfolders:
        return None, ()
    classes, labels = np.unique(subfolders, return_inverse=True)
    return labels.astype(np.int32), tuple(one_line(name) for name in classes)


@dataclasses.dataclass(frozen=True)
class FolderExamples:
    """Images that are read and decoded on access; threads may share it.

    Attributes:
      root: the folder.
      names: paths of the files, relative to the folder.
      spec: how images are fitted to a square.
      labels: labels of the files, int32 [n], or None.
      remedy: what the user can do if an image cannot be read, for messages.
    """

    root: pathlib.Path
    names: Sequence[str]
    spec: ImageSpec
    labels: np.ndarray | None = None
    remedy: str = REPLACE_OR_SKIP

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        image = {"image": read_image(self.root / self.names[index], *self.spec, remedy=self.remedy)}
        return image if self.labels is None else {**image, "label": self.labels[index]}


def _select(examples: FolderExamples, images: np.ndarray | None, indices: np.ndarray) -> Examples:
    """Returns the examples at some indices: arrays if all `images` are in memory, else files."""
    names, labels = examples.names[indices], None if examples.labels is None else examples.labels[indices]
    if images is None:
        return dataclasses.replace(examples, names=names, labels=labels)
    return ArrayExamples({"image": images[indices]} | ({} if labels is None else {"label": labels}), names)


def _require_two(root: pathlib.Path, count: int, kind: str = "") -> None:
    if count < 2:
        images = f"{count or 'no'}{kind} image{'s' if count != 1 else ''}"
        raise InputError(f"dataset.path: {root} holds {images}; it needs two, one to train and one to validate")


def _read_all(examples: FolderExamples, images: np.ndarray | None, skip_unreadable: bool) -> np.ndarray:
    """Reads every image, into `images` unless it is None; returns which were readable, bool [n]."""
    with require_extra("train"):
        import tqdm

    def read(index: int) -> UnreadableImageError | None:
        try:
            image = examples[index]["image"]
        except UnreadableImageError as error:
            return error
        if images is not None:
            images[index] = image
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm.tqdm(
            pool.map(read, range(len(examples))),
            desc=one_line(f"reading {examples.root}"),
            total=len(examples),
            unit=" images",
            delay=2,
            disable=None,
        )
        errors = list(progress)
    unreadable = {name: error for name, error in zip(examples.names, errors, strict=True) if error}
    if len(unreadable) == 1 and not skip_unreadable:
        raise next(iter(unreadable.values()))
    if unreadable and not skip_unreadable:
        raise InputError(
            f"{examples.root}: {len(unreadable)} unreadable images ({_reasons(unreadable)}); "
            "replace or remove them, or set dataset.skip_unreadable=True"
        )
    if unreadable:
        log.warning(
            "%s: left out %d of %d images, which are unreadable (%s)",
            one_line(str(examples.root)),
            len(unreadable),
            len(examples),
            _reasons(unreadable),
        )
    return np.array([error is None for error in errors])


def _reasons(errors: Mapping[str, UnreadableImageError], most: int = 5) -> str:
    """Returns the first names of unreadable images, each group with its reason."""
    by_reason = collections.defaultdict(list)
    for name in list(errors)[:most]:
        by_reason[short_repr(errors[name].reason, 100, str)].append(name)
    parts = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    rest = [f"and {len(errors) - most} more"] if len(errors) > most else []
    return one_line("; ".join([*parts, *rest]))


def _is_validation(root: pathlib.Path, names: np.ndarray, fraction: float) -> np.ndarray:
    """Returns which images are for validation, bool [n]: those whose names hash to the lowest `fraction` of values.

    Copies of one image are on the side of the first of them, so that none is both trained on and validated.
    """
    copies = find_copies(root, names)
    if copies:
        log.info("%s: %d of %d images are copies of others", one_line(str(root)), len(copies), len(names))
    if len(copies) == len(names) - 1:  # a single picture: nothing can be held out
        copies = {}
    names = [copies.get(name, name) for name in names]
    digests = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names]
    hashes = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    validates = hashes < fraction
    validates[hashes == hashes.min()] = True
    validates[hashes == hashes.max()] = False
    return validates
