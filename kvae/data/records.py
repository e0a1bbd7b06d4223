"""Encoded images in the ArrayRecord files of a tfds folder: how they are prepared and read.

ArrayRecord stores a checksum with each record and with each header, so a corrupted or truncated file raises when it is
read; there are no other checks.
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
    """Returns the folder `data_dir`; if empty, tfds's default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    if data_dir:
        return user_path("dataset.data_dir", data_dir)
    return user_path("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def manual_folder(data_dir: str) -> pathlib.Path:
    """Returns the folder for archives that the user has downloaded; it is tfds's too."""
    return data_folder(data_dir) / "downloads" / "manual"


def is_prepared(builder: "tfds.core.DatasetBuilder") -> bool:
    """True if the builder's folder exists. tfds's own method logs a warning if it does not."""
    return builder.data_path.exists()


def prepare(builder: "tfds.core.DatasetBuilder", needs_tensorflow: bool = False) -> None:
    """Prepares a tfds builder as ArrayRecords, unless it is prepared already.

    Args:
      builder: of tfds.
      needs_tensorflow: True if its recipe imports TensorFlow.

    Raises:
      InputError: TensorFlow is needed and missing, an archive is not the published one, or the disk refuses.
    """
    if is_prepared(builder):
        return
    if needs_tensorflow and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{builder.name}: preparing it in {builder.data_dir} needs TensorFlow, once, and it is not installed: "
            "pip install -e '.[tfds]'"
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor, util

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # its carriage returns would fill a log file
    try:
        with wrap_prepare_errors(builder.data_path):
            builder.download_and_prepare(file_format="array_record")
    except (download_manager.NonMatchingChecksumError, extractor.ExtractError, util.DownloadError) as error:
        why = first_line(error).rstrip(":")
        raise InputError(f"{builder.data_path}: not prepared: {why}; get the archive again") from error


@contextlib.contextmanager
def wrap_prepare_errors(folder: os.PathLike) -> Iterator[None]:
    """Turns the errors of a full, read-only or broken disk, or of a lost connection, into one line with the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):  # array_record's OSError
            raise
        raise InputError(f"{folder}: not prepared: {' '.join(str(error).split())}") from error


def read_split(
    builder: "tfds.core.DatasetBuilder", split: str, fields: Sequence[str] = ("image", "label")
) -> "RecordExamples":
    """Opens a split of a prepared builder for random access.

    Args:
      builder: of tfds.
      split: in tfds's split language, such as "train[:80%]" or "train+test".
      fields: which fields of a record an example has, see `RecordExamples`.

    Raises:
      InputError: there is no such split, it is empty, or the folder was prepared in a format without random access.
    """
    with require_extra("train"):
        import tensorflow_datasets as tfds
    with wrap_read_errors(builder.data_path, DELETE_TO_PREPARE):
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        try:
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise InputError(
                f"{builder.name}: {builder.data_dir} holds {builder.info.file_format.value} files, which have no "
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
    """Examples read and decoded on access. Threads may share it; pickling is cheap, because files open at first access.

    Attributes:
      source: a tfds data source whose images are still encoded.
      fields: which fields of a record an example has: "image" uint8 [h, w, 3], "label" int32 [].
      folder: where the records are, for messages.
    """

    source: Sequence
    fields: tuple[str, ...]
    folder: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        with wrap_read_errors(self.folder, DELETE_TO_PREPARE):
            record = self.source[index]
            example = {}
            if "image" in self.fields:
                example["image"] = decode_image(record["image"], f"record {index} of {self.folder}")
            if "label" in self.fields:
                example["label"] = np.asarray(record["label"], np.int32)
            return example


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the image of a record: uint8 [h, w, 3].

    Raises:
      InputError: the image `name` cannot be read.
    """
    with open_image(data, name, "delete the folder to have it prepared again") as image:
        return np.asarray(image.convert("RGB"))


def load_split(
    builder: "tfds.core.DatasetBuilder", split: str, fields: Sequence[str] = ("image", "label")
) -> dict[str, np.ndarray]:
    """Decodes a split that fits in memory, and keeps the arrays in a file next to the records for the next call.

    The file saves time only (20 s for 50,000 small images): if it cannot be read the records are decoded again, and if
    it cannot be written there is none.

    Returns:
      Arrays [n, ...] by field, see `RecordExamples`.

    Raises:
      InputError: see `read_split`; or a record is corrupted.
    """
    examples = read_split(builder, split, fields)
    copy = pathlib.Path(builder.data_path) / f"decoded-{urllib.parse.quote(split, safe='')}.npz"
    # NumPy and zipfile raise nearly anything over a corrupted file.
    with contextlib.suppress(Exception), opened(copy) as file, np.load(file) as saved:
        arrays = {name: saved[name] for name in fields}
        if all(len(array) == len(examples) for array in arrays.values()):
            return arrays
    arrays = {name: np.empty((len(examples), *value.shape), value.dtype) for name, value in examples[0].items()}
    for index in range(len(examples)):  # on small images a thread's overhead exceeds its gain
        for name, value in examples[index].items():
            arrays[name][index] = value
    with contextlib.suppress(OSError), replaced(copy) as incomplete, incomplete.open("wb") as file:
        np.savez(file, **arrays)
    return arrays


def resize_to_jpeg(data: bytes, size: int, name: str) -> bytes:
    """Converts an encoded image of any format and mode to a size x size RGB JPEG, without cropping.

    Antialiased bilinear; quality 95 without chroma subsampling, because a model is trained to reproduce these pixels
    (about 35 kB at 256). A JPEG that already has this size is returned unchanged.

    Raises:
      InputError: the image `name` cannot be read.
    """
    from PIL.Image import Resampling

    with open_image(data, name, "get the archive again") as image:
        image.load()
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)):
            return data
        resized = image.convert("RGB").resize((size, size), Resampling.BILINEAR)
    encoded = io.BytesIO()
    resized.save(encoded, "JPEG", quality=95, subsampling=0)
    return encoded.getvalue()


def resize_all(images: Iterable[tuple[str, bytes, str]], size: int) -> Iterator[tuple[str, bytes, str]]:
    """Applies `resize_to_jpeg` to (name, data, label) triples on all cores, in order, with a few images in memory."""
    workers = os.cpu_count() or 1  # threads suffice: Pillow releases the GIL
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
