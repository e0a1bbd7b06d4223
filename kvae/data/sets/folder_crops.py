"""Many crops of each photograph in a folder, cut once and kept in a file."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kvae.core.errors import InputError, one_line, require_extra, wrap_read_errors, wrap_write_errors
from kvae.core.files import read_text, replaced, write_text
from kvae.data.dataset import Example, ImageSpec
from kvae.data.images import REPLACE_OR_SKIP, UnreadableImageError, open_image, upright_rgb
from kvae.data.records import DELETE_TO_PREPARE

log = logging.getLogger(__name__)

CACHE_FOLDER, VERSION = "folder_crops", 2
"""Folder of the files of crops inside the data folder, and the version of their contents."""

SIGNATURE_SIDE, MOST_DIFFERENT = 16, 6
"""Two pictures are the same if no level of their RGB miniatures differs by more levels; the miniature's side."""


def crop_corners(width: int, height: int, size: int, count: int, seed: int) -> np.ndarray:
    """Draws square crops of an image: sides log-uniformly from `size` to the shorter side, places uniformly.

    Example:
      >>> crop_corners(width=640, height=480, size=32, count=2, seed=0).shape
      (2, 3)

    Args:
      width, height: size of the image in pixels.
      size: side of the smallest crop in pixels.
      count: number of crops.
      seed: seed of the random numbers.

    Returns:
      int64 [count, 3]: left, top and side in pixels.
    """
    share = np.random.default_rng(seed).random((count, 3))
    sides = np.exp(np.log(size) + share[:, 0] * np.log(min(width, height) / size)).round().astype(int)
    sides = sides.clip(size, min(width, height))
    left, top = (np.floor(share[:, i] * (extent - sides + 1)) for i, extent in ((1, width), (2, height)))
    return np.stack([left, top, sides], axis=1).astype(int)


def cut_crops(image: Image.Image, size: int, count: int, seed: int) -> np.ndarray:
    """Returns the crops of `crop_corners`, each resized to `size`: uint8 [count, size, size, 3].

    A large crop is cut from a reduced image: the mean of 2^k x 2^k pixels, then antialiased bilinear interpolation.
    """
    reduced, crops = {1: image}, np.empty((count, size, size, 3), np.uint8)
    for i, (left, top, side) in enumerate(crop_corners(image.width, image.height, size, count, seed)):
        factor = 2 ** int(math.log2(side / size))
        if factor not in reduced:
            reduced[factor] = image.reduce(factor)
        box = tuple(np.array([left, top, left + side, top + side]) / factor)
        source = reduced[factor]
        box = (*box[:2], min(box[2], source.width), min(box[3], source.height))
        crops[i] = np.asarray(source.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return crops


@dataclasses.dataclass(frozen=True)
class CropExamples:
    """Crops that are read from their file on access. Threads may share them.

    Attributes:
      crops: all crops, uint8 [images, crops per image, size, size, 3].
      rows: the images of this set, int [n].
      labels: label of each of these images, int32 [n], or None.
    """

    crops: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"CropExamples(image uint8{[len(self), *self.crops.shape[2:]]})"

    def __len__(self) -> int:
        return len(self.rows) * self.crops.shape[1]

    def __getitem__(self, index: int) -> Example:
        image, crop = divmod(range(len(self))[index], self.crops.shape[1])
        example = {"image": np.array(self.crops[self.rows[image], crop])}
        return example if self.labels is None else {**example, "label": self.labels[image]}


def cached_crops(
    root: pathlib.Path, names: Sequence[str], spec: ImageSpec, count: int, skip_unreadable: bool, data_dir: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """Returns crops of all images, cut in an earlier call or now.

    The file's name is a digest of the arguments and of each image's size and time of change, so a changed folder is cut
    again. The crops of an image depend only on its name and pixels.

    Args:
      root: the folder of images.
      names: paths of the images, relative to the folder.
      spec: side of the crops, and the white level.
      count: crops per image.
      skip_unreadable: True leaves unreadable and small images out.
      data_dir: the folder of caches.

    Returns:
      uint8 [images, count, size, size, 3], a memory map; and the indices of the images to use, int [n]: readable, and
      not a copy of an image before it.

    Raises:
      InputError: an image cannot be read or is smaller than a crop, or the file cannot be written.
    """
    files = [(name, *_size_and_time(root / name)) for name in names]
    facts = json.dumps([VERSION, spec.size, spec.white, count, skip_unreadable, str(root), files])
    path = data_dir / CACHE_FOLDER / f"{hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()}.npy"
    record = path.with_suffix(".json")  # written last
    if not record.exists():
        with wrap_write_errors(f"dataset.data_dir: {path.parent}"):
            chosen = _write_crops(root, names, spec, count, skip_unreadable, path)
            write_text(record, json.dumps({"folder": str(root), "chosen": chosen}) + "\n")
    with wrap_read_errors(path, DELETE_TO_PREPARE):
        crops = np.load(path, mmap_mode="r")
        chosen = np.array(json.loads(read_text(record))["chosen"], int)
        if crops.shape != (len(names), count, spec.size, spec.size, 3):
            raise ValueError(f"its shape is {crops.shape}")
    return crops, chosen


def _size_and_time(path: pathlib.Path) -> tuple[int, int]:
    """Returns a file's size and time of change; (-1, -1) for a broken link, which is reported when it is read."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _write_crops(root, names, spec, count, skip_unreadable, path) -> list[int]:
    """Writes the crops of all images and returns the indices of the images to use."""
    shape = (len(names), count, spec.size, spec.size, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"dataset.crops_per_image: {count} crops of {len(names)} images need {needed / 2**30:.1f} GiB in "
            f"{path.parent}, which has {free / 2**30:.1f} GiB; lower it, or choose another dataset.data_dir"
        )
    with replaced(path) as incomplete, open(incomplete, "wb") as file:
        # Written with system calls, because a full disk ends a process that writes to a memory map.
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        start = file.tell()
        file.truncate(start + needed)

        def write(index: int) -> np.ndarray | UnreadableImageError:
            try:
                crops, signature = _read_crops(root / names[index], names[index], spec, count)
            except UnreadableImageError as error:
                return error
            _write_all(file.fileno(), crops.tobytes(), start + index * crops.nbytes)
            return signature

        results = list(_in_threads(write, len(names), one_line(f"cutting crops of {root}")))
    errors = [result for result in results if isinstance(result, UnreadableImageError)]
    if errors and not skip_unreadable:
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    readable = [i for i, result in enumerate(results) if not isinstance(result, UnreadableImageError)]
    copies = find_same_pictures(np.array([results[i] for i in readable]))
    log.info(
        "%s: %d crops of %d images; left out %d unreadable or small images and %d copies",
        one_line(str(root)),
        count * (len(readable) - len(copies)),
        len(readable) - len(copies),
        len(errors),
        len(copies),
    )
    return [image for i, image in enumerate(readable) if i not in copies]


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _in_threads(function: Callable[[int], Any], count: int, title: str) -> Iterator[Any]:
    with require_extra("train"):
        import tqdm

    # Pillow releases the GIL while it decodes and resizes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from tqdm.tqdm(pool.map(function, range(count)), title, count, unit=" images", delay=2, disable=None)


def _read_crops(path: pathlib.Path, name: str, spec: ImageSpec, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the crops of an image file, and its miniature, int16 [3 * SIGNATURE_SIDE ** 2]."""
    with open_image(path, str(path), REPLACE_OR_SKIP) as file:
        image = upright_rgb(file, spec.white)
    if min(image.size) < spec.size:
        reason = f"it has {image.width} x {image.height} pixels, fewer than dataset.size = {spec.size}"
        raise UnreadableImageError(str(path), reason, REPLACE_OR_SKIP)
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    crops = cut_crops(image, spec.size, count, int.from_bytes(digest, "big"))
    miniature = image.resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return crops, np.asarray(miniature, np.int16).ravel()


def find_same_pictures(signatures: np.ndarray) -> set[int]:
    """Returns the indices of pictures that equal an earlier one, at any resolution and in any format.

    Example:
      >>> find_same_pictures(np.array([[10, 200], [90, 90], [11, 199]]))
      {2}

    Args:
      signatures: levels of miniatures, int [n, 3 x pixels].
    """
    means, copies = signatures.mean(axis=1), set()
    order = np.argsort(means, kind="stable")
    for position, i in enumerate(order):
        # Equal pictures have nearly equal means, so only those next in order need to be compared.
        for j in order[position + 1 :]:
            if means[j] - means[i] > MOST_DIFFERENT:
                break
            if np.abs(signatures[i] - signatures[j]).max() <= MOST_DIFFERENT:
                copies.add(int(max(i, j)))
    return copies
