"""The default data set: crops of colour photographs that ship with scikit-image. It needs no download."""

import contextlib
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator

from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.fields import CachePath
from kvae.data.dataset import ArrayExamples, Dataset
from kvae.data.records import DELETE_TO_PREPARE, data_folder, is_prepared, load_split, wrap_prepare_errors

SIZES = (32, 64, 128, 256)
"""Sides of the square crops, in pixels."""


def photos(size: int = 32, data_dir: CachePath = "") -> Dataset:
    """Loads square crops of colour photographs.

    The first call prepares them with tfds in a few seconds. At 32 pixels there are 5,532 training crops and 917
    validation crops.

    Args:
      size: side of the crops in pixels: 32, 64, 128 or 256. For 32, the photographs are first reduced to half their
        size, so that a crop shows more than texture.
      data_dir: the data folder of tfds; empty for its default.

    Raises:
      InputError: the size is not one of these, or the folder cannot be written or is corrupted.
    """
    if size not in SIZES:
        raise InputError(f"dataset.size is {size}; it must be one of {', '.join(map(str, SIZES))}")
    with require_extra("train"):
        from kvae.data.sets.photos_builder import Photos
    root = data_folder(data_dir)
    with _quiet():
        with wrap_read_errors(root / "photos" / str(size), DELETE_TO_PREPARE):
            builder = Photos(config=str(size), data_dir=root)
        if not is_prepared(builder):
            _prepare_photos(builder)
            builder = Photos(config=str(size), data_dir=root)
        train, validation = (load_split(builder, split, fields=("image",)) for split in ("train", "validation"))
    return Dataset(train=ArrayExamples(train), validation={"validation": ArrayExamples(validation)})


def _prepare_photos(builder) -> None:
    """Prepares the records in a temporary folder and renames it, so that processes can do this at the same time."""
    target = pathlib.Path(builder.data_path)
    root = pathlib.Path(builder.data_dir_root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="photos.incomplete.", dir=root) as temporary:
            private = type(builder)(config=builder.builder_config.name, data_dir=temporary)
            with wrap_prepare_errors(target):
                private.download_and_prepare(file_format="array_record")
            _move(pathlib.Path(private.data_path), target)
    except OSError as error:
        raise InputError(
            f"dataset.data_dir: {root} cannot be written ({error.strerror}); choose another folder"
        ) from error


def _move(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder, unless another process has already prepared the same crops."""
    try:
        os.rename(folder, target)
    except OSError:
        if not target.exists():
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output, log messages and progress bars of tfds."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
