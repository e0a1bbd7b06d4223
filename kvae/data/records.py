"""Encoded images in the ArrayRecords of a tfds folder: where they lie, how they are made, and random access to them."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL.Image import Resampling

from kvae.core.errors import InputError, first_line, wrap_read_errors
from kvae.core.files import opened, replaced
from kvae.data.dataset import Example
from kvae.data.images import opened_image
from kvae.data.manifest import check_manifest, write_manifest

PREPARED_ANEW = "remove it, and it is prepared anew"
"""What to do with a damaged folder of records."""


def data_folder(data_dir: str) -> pathlib.Path:
    """`data_dir`, or if it is empty the folder tfds uses: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def manual_folder(data_dir: str) -> pathlib.Path:
    """Where tfds, and we, look for archives that the user has put there by hand."""
    return data_folder(data_dir) / "downloads" / "manual"


def is_prepared(builder) -> bool:
    """Whether the builder's folder is there. tfds's own method logs a warning where it is not."""
    return builder.data_path.exists()


def prepare(builder, needs_tensorflow: bool = False) -> None:
    """Prepares a tfds builder as ArrayRecords, unless that has been done before.

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
        tfds.disable_progress_bar()  # a log file wants no carriage returns
    try:
        with wrap_prepare_errors(builder.data_path):
            builder.download_and_prepare(file_format="array_record")
            write_manifest(builder.data_path)
    except (download_manager.NonMatchingChecksumError, extractor.ExtractError, util.DownloadError) as error:
        why = first_line(error).rstrip(":")
        raise InputError(f"{builder.data_path}: not prepared: {why}; get the archive again") from error


def opened_builder(folder: pathlib.Path, make: Callable):
    """The tfds builder that `make` gives, whose data may lie in a folder of their version below `folder`.

    Raises:
      InputError: what lies there is not what was prepared.
    """
    with wrap_read_errors(folder, PREPARED_ANEW):
        for version in folder.glob("*.*.*"):
            check_manifest(version)
        return make()


@contextlib.contextmanager
def wrap_prepare_errors(folder: os.PathLike) -> Iterator[None]:
    """Turns a disk that is full, read-only or broken, or a lost connection, into one line that names the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):  # array_record's way to say OSError
            raise
        raise InputError(f"{folder}: not prepared: {' '.join(str(error).split())}") from error


def read_split(builder, split: str, fields: Sequence[str] = ("image", "label")) -> "RecordExamples":
    """Random access to a split (tfds's split language, such as "train[:80%]" or "train+test") of a prepared builder.

    Raises:
      InputError: there is no such split, it is empty, or the folder was prepared in a format without random access.
    """
    import tensorflow_datasets as tfds

    with wrap_read_errors(builder.data_path, PREPARED_ANEW):
        sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
        try:
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise InputError(
                f"{builder.name}: {builder.data_dir} holds {builder.info.file_format.value} files, which cannot be "
                "read at random; remove that folder, or choose another data_dir: it is prepared anew as array_record"
            ) from error
        except (AssertionError, ValueError) as error:
            if not sizes:
                raise
            raise InputError(f"{builder.name}: split {split!r} has no examples; there are {sizes}") from error
        return RecordExamples(source, tuple(fields), str(builder.data_path))


@dataclasses.dataclass(frozen=True)
class RecordExamples:
    """Examples read and decoded one by one. Threads may share it, and it pickles small: files open at first access.

    Attributes:
      source: a tfds data source whose images are left encoded.
      fields: which fields of a record an example has: "image" uint8 [h, w, 3], "label" int32 [].
      folder: of the records, for messages.
    """

    source: Sequence
    fields: tuple[str, ...]
    folder: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        with wrap_read_errors(self.folder, PREPARED_ANEW):
            record = self.source[index]
            convert = {"image": decoded, "label": np.int32}
            return {name: np.asarray(convert[name](record[name])) for name in self.fields}


def decoded(data: bytes) -> np.ndarray:
    """The pixels of an encoded image as we store them, uint8 [h, w, 3]."""
    with opened_image(data, "a record", "remove its folder, and it is prepared anew") as image:
        return np.asarray(image.convert("RGB"))


def decoded_once(builder, split: str, fields: Sequence[str] = ("image", "label")) -> dict[str, np.ndarray]:
    """Arrays of a split that fits in memory, from the copy that the first call leaves beside the records.

    A copy that cannot be read, or not be written, only costs the time that it saves: 20 s for 50,000 small images.

    Raises:
      InputError: as `read_split`, or a record is damaged.
    """
    examples = read_split(builder, split, fields)
    copy = pathlib.Path(builder.data_path) / f"decoded-{urllib.parse.quote(split, safe='')}.npz"
    # Whatever a damaged archive makes NumPy and zipfile raise.
    with contextlib.suppress(Exception), opened(copy) as file, np.load(file) as arrays:
        found = {name: arrays[name] for name in fields}
        if all(len(array) == len(examples) for array in found.values()):
            return found
    arrays = {name: np.empty((len(examples), *value.shape), value.dtype) for name, value in examples[0].items()}
    # In one thread: such small images decode faster than threads can hand the interpreter over.
    for index in range(len(examples)):
        for name, value in examples[index].items():
            arrays[name][index] = value
    with contextlib.suppress(OSError), replaced(copy) as incomplete, incomplete.open("wb") as file:
        np.savez(file, **arrays)
    return arrays


def fitted(data: bytes, size: int, name: str) -> bytes:
    """An image of any format and mode as a size x size RGB JPEG: whole, not cropped, its aspect ratio given up.

    Resized with antialiased bilinear; quality 95 without chroma subsampling, for these pixels are what a model is asked
    to reproduce (about 35 kB at 256). A JPEG that has this size already is returned as it is, and loses nothing.

    Raises:
      InputError: `name` cannot be read as an image.
    """
    with opened_image(data, name, "get the archive again") as image:
        image.load()
        if (image.format, image.mode, image.size) == ("JPEG", "RGB", (size, size)):
            return data
        resized = image.convert("RGB").resize((size, size), Resampling.BILINEAR)
    encoded = io.BytesIO()
    resized.save(encoded, "JPEG", quality=95, subsampling=0)
    return encoded.getvalue()


def fit_all(images: Iterable[tuple[str, bytes, str]], size: int) -> Iterator[tuple[str, bytes, str]]:
    """`fitted` over (name, data, label) triples on all cores, in order, with a few images per core in memory."""
    workers = os.cpu_count() or 1  # threads: Pillow lets go of the interpreter while it works
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        window = collections.deque()
        for name, data, label in images:
            window.append((name, pool.submit(fitted, data, size, name), label))
            if len(window) > 4 * workers:
                done, future, its_label = window.popleft()
                yield done, future.result(), its_label
        for done, future, its_label in window:
            yield done, future.result(), its_label
