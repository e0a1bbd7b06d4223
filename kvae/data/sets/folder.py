"""A folder of the user's own images."""

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
from kvae.core.fields import CachePath, LocalPath, Natural, NotNegative, Size
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples, ImageSpec, fits_in_memory
from kvae.data.images import REPLACE_OR_SKIP, UnreadableImageError, read_image
from kvae.data.listing import find_copies, image_folder, list_images, warn_of_depth
from kvae.data.records import data_folder
from kvae.data.sets.folder_crops import CropExamples, cached_crops

log = logging.getLogger(__name__)


def folder(
    path: LocalPath,
    size: Size = 64,
    crop: bool = True,
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
    skip_unreadable: bool = False,
    white: NotNegative = 0.0,
    crops_per_image: Natural = 0,
    data_dir: CachePath = "",
) -> Dataset:
    """Loads the images below a folder, in any format that Pillow decodes.

    Files that are not images are counted in the log; hidden files are ignored. A hash of an image's path decides
    whether it is for training or validation, so new images do not move others between the two sets. A file with several
    links is one image. Identical copies are all kept, in the same set as the first of them. If every image is in a
    subfolder of `path`, its label is the first subfolder in its path.

    Args:
      path: the folder; its subfolders are searched too.
      size: side of the images, in pixels.
      crop: resize the shorter side to `size` and crop to the centre; otherwise resize both sides, which changes the
        aspect ratio. Both use antialiased bilinear interpolation.
      validation_fraction: approximate fraction of the images for validation, between 0 and 1; at least one image is
        for validation and one for training.
      skip_unreadable: skip unreadable images and log how many there are. To find them, a folder too large for memory is
        read once before training. If False, an unreadable image is an error: before training, or, in a folder too large
        for memory, when training reaches the image.
      white: the white level of grey images with more than 8 bits, such as 4095 for 12 bits; 0 means 65535 for integers,
        and for floats 1, or 255 if a level exceeds 1.
      crops_per_image: number of square crops of each image, at random places and of all sizes from `size` up to the
        image's shorter side; 0 takes the whole image once. Crops are cut once and kept in `data_dir`. An image is left
        out if it equals another one at any size; one smaller than `size` counts as unreadable.
      data_dir: the folder for crops; empty for the default data folder of tfds.

    Raises:
      InputError: the folder does not exist or has fewer than two images, an image cannot be read, or a field is out of
        range.
    """
    if not path:
        raise InputError("dataset.path is empty; set it to a folder of images with --config.dataset.path=DIR")
    root, spec = image_folder(path, "dataset.path"), ImageSpec(size, crop, white)
    examples, classes = folder_examples(root, spec, "dataset.path")
    _require_two(examples.root, len(examples))
    if crops_per_image:
        return _crops_of(examples, classes, crops_per_image, validation_fraction, skip_unreadable, data_dir)
    is_readable = np.ones(len(examples), bool)
    images = None
    if fits_in_memory(len(examples) * size * size * 3):
        images = np.empty((len(examples), size, size, 3), np.uint8)
    if images is not None or skip_unreadable:
        is_readable = _read_all(examples, images, skip_unreadable)
        _require_two(examples.root, np.count_nonzero(is_readable), " readable")
    readable = np.flatnonzero(is_readable)
    is_validation = _is_validation(examples.root, examples.names[readable], validation_fraction)
    train, validation = (_select(examples, images, readable[part]) for part in (~is_validation, is_validation))
    return Dataset(train, {"validation": validation}, classes)


def _crops_of(
    images: "FolderExamples",
    classes: tuple[str, ...],
    count: int,
    validation_fraction: float,
    skip_unreadable: bool,
    data_dir: str,
) -> Dataset:
    """Returns `count` crops of each image; all crops of an image are in the same set."""
    crops, chosen = cached_crops(images.root, images.names, images.spec, count, skip_unreadable, data_folder(data_dir))
    _require_two(images.root, len(chosen), " different readable")
    is_validation = _is_validation(images.root, images.names[chosen], validation_fraction)

    def part(rows: np.ndarray) -> Examples:
        labels = None if images.labels is None else images.labels[rows]
        if not fits_in_memory(crops.nbytes):
            return CropExamples(crops, rows, labels)
        arrays = {"image": crops[rows].reshape(-1, *crops.shape[2:])}
        return ArrayExamples(arrays if labels is None else {**arrays, "label": np.repeat(labels, count)})

    return Dataset(part(chosen[~is_validation]), {"validation": part(chosen[is_validation])}, classes)


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
    remedy_for_depth = "set dataset.white" if where == "dataset.path" else "in training, set dataset.white"
    warn_of_depth(root, names, spec.white, remedy_for_depth)
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
    """Images that are read and decoded on access. Threads may share them.

    Attributes:
      root: the folder.
      names: paths of the images, relative to the folder.
      spec: how images are fitted to a square.
      labels: labels of the images, int32 [n], or None.
      remedy: what the user can do if an image cannot be read.
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
    """Returns the examples at some indices, in memory if `images` is not None, else read on access."""
    names, labels = examples.names[indices], None if examples.labels is None else examples.labels[indices]
    if images is None:
        return dataclasses.replace(examples, names=names, labels=labels)
    return ArrayExamples({"image": images[indices]} | ({} if labels is None else {"label": labels}), names)


def _require_two(root: pathlib.Path, count: int, kind: str = "") -> None:
    """Raises InputError if there are fewer than two images."""
    if count < 2:
        images = f"{count or 'no'}{kind} image{'s' if count != 1 else ''}"
        raise InputError(f"dataset.path: {root} has {images}; it needs two, one for training and one for validation")


def _read_all(examples: FolderExamples, images: np.ndarray | None, skip_unreadable: bool) -> np.ndarray:
    """Reads every image, into `images` unless it is None, and returns which are readable, bool [n]."""
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
            "%s: skipped %d of %d images because they are unreadable (%s)",
            one_line(str(examples.root)),
            len(unreadable),
            len(examples),
            _reasons(unreadable),
        )
    return np.array([error is None for error in errors])


def _reasons(errors: Mapping[str, UnreadableImageError], most: int = 5) -> str:
    """Returns the names of the first unreadable images, grouped by reason."""
    by_reason = collections.defaultdict(list)
    for name in list(errors)[:most]:
        by_reason[short_repr(errors[name].reason, 100, str)].append(name)
    parts = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    rest = [f"and {len(errors) - most} more"] if len(errors) > most else []
    return one_line("; ".join([*parts, *rest]))


def _is_validation(root: pathlib.Path, names: np.ndarray, fraction: float) -> np.ndarray:
    """Returns which images are for validation, bool [n]: those whose names hash to the lowest `fraction` of values.

    All copies of an image are in the set of the first copy, so that no image is used for both training and validation.
    """
    copies = find_copies(root, names)
    if copies:
        log.info("%s: %d of %d images are copies of other images", one_line(str(root)), len(copies), len(names))
    if len(copies) == len(names) - 1:  # all images are identical, so the sets cannot be kept apart
        copies = {}
    names = [copies.get(name, name) for name in names]
    digests = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names]
    hashes = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    is_validation = hashes < fraction
    is_validation[hashes == hashes.min()] = True
    is_validation[hashes == hashes.max()] = False
    return is_validation
