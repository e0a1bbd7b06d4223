"""Prepares and reads encoded images in the ArrayRecord files of a tfds folder.

ArrayRecord checksums every record and header, so reading a corrupted or truncated file raises an exception. There are
no other checks.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import io
import os
import pathlib
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvae.core.errors import InputError, first_line, require_extra, wrap_read_errors
from kvae.core.files import opened, replaced, user_path
from kvae.data.dataset import Example
from kvae.data.images import open_image

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DELETE_TO_PREPARE = "delete it to have it prepared again"
"""Remedy for a corrupted folder of records."""


def data_folder(data_dir: str) -> pathlib.Path:
    """Returns `data_dir`, or tfds's default if it is empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    if data_dir:
        return user_path("dataset.data_dir", data_dir)
    return user_path("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def manual_folder(data_dir: str) -> pathlib.Path:
    """Returns tfds's folder for archives that the user has downloaded."""
    return data_folder(data_dir) / "downloads" / "manual"


def is_prepared(builder: "tfds.core.DatasetBuilder") -> bool:
    """True if the builder's folder exists. Unlike tfds's own method, it logs no warning if the folder is missing."""
    return builder.data_path.exists()


def prepare(builder: "tfds.core.DatasetBuilder", needs_tensorflow: bool = False) -> None:
    """Prepares the data set of a tfds builder as ArrayRecord files, unless it is prepared already.

    Args:
      builder: a tfds builder.
      needs_tensorflow: True if the builder imports TensorFlow to prepare its data set.

    Raises:
      InputError: TensorFlow is needed but not installed, an archive cannot be downloaded or extracted or has the wrong
        checksum, or the folder cannot be written.
    """
    if is_prepared(builder):
        return
    if needs_tensorflow and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{builder.name} is not prepared in {builder.data_dir}; to prepare it, install TensorFlow: "
            "pip install -e '.[tfds]'"
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor, util

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # carriage returns would fill a log file
    try:
        with wrap_prepare_errors(builder.data_path):
            builder.download_and_prepare(file_format="array_record")
    except (download_manager.NonMatchingChecksumError, extractor.ExtractError, util.DownloadError) as error:
        why = first_line(error).rstrip(":")
        raise InputError(f"{builder.data_path} cannot be prepared: {why}; download the archive again") from error


@contextlib.contextmanager
def wrap_prepare_errors(folder: os.PathLike) -> Iterator[None]:
    """Turns disk errors and lost connections into an InputError that names the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):  # array_record's OSError
            raise
        raise InputError(f"{folder} cannot be prepared: {' '.join(str(error).split())}") from error


def read_split(
    builder: "tfds.core.DatasetBuilder", split: str, fields: Sequence[str] = ("image", "label")
) -> "RecordExamples":
    """Opens a split of a prepared builder for random access.

    Args:
      builder: a tfds builder.
      split: the split in tfds's syntax, such as "train[:80%]" or "train+test".
      fields: the fields of an example, see `RecordExamples`.

    Raises:
      InputError: the split does not exist or is empty, or the format of the folder does not support random access.
    """
    with require_extra("train"):
        import tensorflow_datasets as tfds
    with wrap_read_errors(builder.data_path, DELETE_TO_PREPARE):
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        try:
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise InputError(
                f"{builder.name}: {builder.data_dir} has {builder.info.file_format.value} files, which do not support "
                "random access; delete that folder to have it prepared again as array_record, or choose another "
                "data_dir"
            ) from error
        except (AssertionError, ValueError) as error:
            if not sizes or split in sizes:  # the files are corrupted, not the user's split
                raise
            raise InputError(f"{builder.name}: split {split!r} has no examples; the splits are {sizes}") from error
        return RecordExamples(source, tuple(fields), str(builder.data_path))


@dataclasses.dataclass(frozen=True)
class RecordExamples:
    """Examples that are read and decoded on access. Threads may share them.

    Pickling is cheap because files are opened on first access.

    Attributes:
      source: a tfds data source whose images are still encoded.
      fields: the fields of an example: "image" uint8 [h, w, 3], "label" int32 [].
      folder: folder of the records, for messages.
    """

    source: Sequence
    fields: tuple[str, ...]
    folder: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; it must be from 0 to {len(self) - 1}")
        with wrap_read_errors(self.folder, DELETE_TO_PREPARE):
            record = self.source[index]
            example = {}
            if "image" in self.fields:
                example["image"] = decode_image(record["image"], f"record {index} of {self.folder}")
            if "label" in self.fields:
                example["label"] = np.asarray(record["label"], np.int32)
            return example


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the image of a record.

    Args:
      data: the encoded image.
      name: name of the image, for messages.

    Returns:
      uint8 [h, w, 3].

    Raises:
      InputError: the image cannot be read.
    """
    with open_image(data, name, "delete the folder to have it prepared again") as image:
        return np.asarray(image.convert("RGB"))


def load_split(
    builder: "tfds.core.DatasetBuilder", split: str, fields: Sequence[str] = ("image", "label")
) -> dict[str, np.ndarray]:
    """Decodes a split that fits in memory, and caches the arrays in a file next to the records.

    The cache only saves time (20 s for 50,000 small images). If it cannot be read, the records are decoded again. A
    cache that cannot be written is skipped.

    Args:
      builder: see `read_split`.
      split: see `read_split`.
      fields: see `read_split`.

    Returns:
      Arrays [n, ...] by field, see `RecordExamples`.

    Raises:
      InputError: see `read_split`, or a record is corrupted.
    """
    examples = read_split(builder, split, fields)
    cache = pathlib.Path(builder.data_path) / f"decoded-{urllib.parse.quote(split, safe='')}.npz"
    # NumPy and zipfile raise many types of exceptions for a corrupted file.
    with contextlib.suppress(Exception), opened(cache) as file, np.load(file) as saved:
        arrays = {name: saved[name] for name in fields}
        if all(len(array) == len(examples) for array in arrays.values()):
            return arrays
    arrays = {name: np.empty((len(examples), *value.shape), value.dtype) for name, value in examples[0].items()}
    for index in range(len(examples)):  # for small images, threads cost more than they save
        for name, value in examples[index].items():
            arrays[name][index] = value
    with contextlib.suppress(OSError), replaced(cache) as incomplete, incomplete.open("wb") as file:
        np.savez(file, **arrays)
    return arrays


def resize_to_jpeg(data: bytes, size: int, name: str) -> bytes:
    """Converts an encoded image of any format and mode to a size x size RGB JPEG, without cropping.

    Interpolation is antialiased bilinear. The JPEG has quality 95 and no chroma subsampling, because a model is trained
    to reproduce these pixels (about 35 kB at 256 x 256). An RGB JPEG that already has this size is returned unchanged.

    Args:
      data: the encoded image.
      size: side of the result, in pixels.
      name: name of the image, for messages.

    Raises:
      InputError: the image cannot be read.
    """
    from PIL.Image import Resampling

    with open_image(data, name, "download the archive again") as image:
        image.load()
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)):
            return data
        resized = image.convert("RGB").resize((size, size), Resampling.BILINEAR)
    encoded = io.BytesIO()
    resized.save(encoded, "JPEG", quality=95, subsampling=0)
    return encoded.getvalue()


def resize_all(images: Iterable[tuple[str, bytes, str]], size: int) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, data, label) triples with resized images, in order; see `resize_to_jpeg`.

    All cores are used. Only a few images are in memory at a time.
    """
    workers = os.cpu_count() or 1  # threads suffice because Pillow releases the GIL
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        window = collections.deque()

        def finish() -> tuple[str, bytes, str]:
            name, resized, label = window.popleft()
            return name, resized.result(), label

        for name, data, label in images:
            window.append((name, pool.submit(resize_to_jpeg, data, size, name), label))
            if len(window) > 4 * workers:
                yield finish()
        while window:
            yield finish()
