"""Any folder of the user's images."""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import tqdm
from annotated_types import Gt, Lt

from kvae.core.errors import InputError, one_line
from kvae.core.fields import Size
from kvae.data.dataset import ArrayExamples, Dataset, Example
from kvae.data.images import SKIP, existing_folder, image_names, read_image

log = logging.getLogger(__name__)


MEMORY_BYTES = 2 * 2**30
"""A folder whose decoded images take no more than this is decoded once, before training; a larger one streams."""


def folder(
    path: str,
    size: Size = 64,
    crop: bool = True,
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
    skip_unreadable: bool = False,
) -> Dataset:
    """The images below a folder, of any format and mode that Pillow reads, as size x size x 3.

    Files with other suffixes and hidden files are ignored. An image validates if the hash of its path below the folder
    says so: a file that is added does not move the others. If every image lies in a folder below `path`, the first of
    its folders is its label.

    Args:
      path: the folder; its folders are searched too.
      size: edge of the images, in pixels.
      crop: resize the shorter side to `size` and keep the middle; otherwise give up the aspect ratio. Both are
        antialiased bilinear.
      validation_fraction: about which part of the images validates, between 0 and 1. Each side gets at least one image.
      skip_unreadable: leave unreadable images out and log how many there were; a folder that streams is then read
        through once before training. Otherwise they are an error: at once, or in a folder that streams where training
        meets the first.

    Raises:
      InputError: there is no such folder, fewer than two images are in it, one cannot be read, or a field is out of
        range.
    """
    if not path:
        raise InputError("dataset.path is empty; name a folder of images with --config.dataset.path=DIR")
    found, classes = whole_folder(existing_folder(path, "dataset.path"), size, crop)
    root, names, labels = found.root, found.names, found.labels
    _require_two(root, len(names))
    in_memory = len(names) * size * size * 3 <= MEMORY_BYTES
    readable = np.ones(len(names), bool)
    if in_memory or skip_unreadable:
        images = np.empty((len(names), size, size, 3), np.uint8) if in_memory else None
        readable = _read_all(found, images, skip_unreadable)
        _require_two(root, np.count_nonzero(readable), " readable")
    validates = _validates(names[readable], validation_fraction)

    def part(chosen: np.ndarray):
        indices = np.flatnonzero(readable)[chosen]
        own = labels[indices] if classes else None
        if in_memory:
            arrays = {"image": images[indices], **({"label": own} if classes else {})}
            return ArrayExamples(arrays, names=names[indices])
        return dataclasses.replace(found, names=names[indices], labels=own)

    return Dataset(part(~validates), {"validation": part(validates)}, classes)


def whole_folder(root: pathlib.Path, size: int, crop: bool, **fields) -> tuple["FolderExamples", tuple[str, ...]]:
    """All images below a folder, in the order of their paths, and the classes if they have labels; see `folder`."""
    names = np.array(image_names(root), dtype=object)
    labels, classes = _labels(names)
    return FolderExamples(root, names, size, crop, labels, **fields), classes


def _labels(names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The label of each image, int32 [n], and the classes: the first folder of each path, where all have one."""
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    if None in folders:
        return None, ()
    classes, labels = np.unique(folders, return_inverse=True)
    return labels.astype(np.int32), tuple(one_line(name) for name in classes)


@dataclasses.dataclass(frozen=True)
class FolderExamples:
    """Images that are read and decoded when they are asked for; threads may share it.

    Attributes:
      root: the folder.
      names: the files' paths below it.
      size: edge of the square that the images are made to fit, in pixels.
      crop: keep the aspect ratio and the middle, or give the aspect ratio up.
      labels: of the files, int32 [n], if they have any.
      remedy: what would do where an image cannot be read.
    """

    root: pathlib.Path
    names: Sequence[str]
    size: int
    crop: bool
    labels: np.ndarray | None = None
    remedy: str = SKIP

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        image = {"image": read_image(self.root / self.names[index], self.size, self.crop, self.remedy)}
        return image if self.labels is None else {**image, "label": self.labels[index]}


def _require_two(root: pathlib.Path, count: int, kind: str = "") -> None:
    if count < 2:
        found = f"{count or 'no'}{kind} image{'s' if count != 1 else ''}"
        raise InputError(f"dataset.path: {root} holds {found}; it takes two, one to train and one to validate")


def _read_all(examples: FolderExamples, images: np.ndarray | None, skip_unreadable: bool) -> np.ndarray:
    """Reads every image, into `images` where that is given. Returns which could be read: bool [n]."""

    def read(index):
        try:
            image = examples[index]["image"]
        except InputError as error:
            return error
        if images is not None:
            images[index] = image

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
    unreadable = [name for name, error in zip(examples.names, errors, strict=True) if error]
    if unreadable and not skip_unreadable:
        first = next(error for error in errors if error)
        if len(unreadable) == 1:
            raise first
        raise InputError(
            f"{examples.root}: {len(unreadable)} unreadable images ({_listed(unreadable)}); "
            "replace or remove them, or set dataset.skip_unreadable=True"
        )
    if unreadable:
        log.warning(
            "%s: %d of %d images are unreadable and left out (%s)",
            one_line(str(examples.root)),
            len(unreadable),
            len(examples),
            _listed(unreadable),
        )
    return np.array([error is None for error in errors])


def _listed(names: Sequence[str], most: int = 5) -> str:
    rest = [f"and {len(names) - most} more"] if len(names) > most else []
    return one_line(", ".join([*names[:most], *rest]))


def _validates(names: Sequence[str], fraction: float) -> np.ndarray:
    """Which images validate, bool [n]: those whose name has a hash in the lowest `fraction` of all hashes."""
    digests = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names]
    places = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    validates = places < fraction
    validates[places.argmin()] = True
    validates[places.argmax()] = False
    return validates
