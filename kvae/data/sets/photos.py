"""The default data set: crops of the colour photographs that are installed with scikit-image. It needs no network."""

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
    """Crops of colour photographs, size x size x 3, held in memory.

    The first call prepares them with tfds, which takes seconds. At 32 px there are 5,532 crops to train on and 917 to
    validate.

    Args:
      size: side of the crops in pixels: 32, 64, 128 or 256. At 32 the photographs are halved first, so that a crop
        shows something.
      data_dir: tfds's folder; empty for its default.

    Raises:
      InputError: there is no such size, the folder cannot be written, or its files are corrupted.
    """
    if size not in SIZES:
        raise InputError(f"dataset.size is {size}; the photographs have crops of {', '.join(map(str, SIZES))} pixels")
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
    """Prepares the records in a temporary folder and renames it, so that several processes can prepare at once."""
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
    try:
        os.rename(folder, target)
    except OSError:
        if not target.exists():  # otherwise another process has prepared the same crops
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what tfds prints, logs and draws while it works for a few seconds."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
