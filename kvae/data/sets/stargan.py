"""tfds builders of CelebA-HQ and AFHQ from the zip archives of StarGAN v2, for which tfds has no builders.

They do not need TensorFlow. This module imports tfds, so `kvae.data.sets.faces` imports it only when called.
"""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from kvae.core.errors import InputError, wrap_read_errors
from kvae.core.files import opened
from kvae.data.records import DELETE_TO_PREPARE, resize_all

MAX_UNPACKED_BYTES = 2**28
"""Zip members that unpack to more than this are rejected."""


@dataclasses.dataclass(kw_only=True)
class SizeConfig(tfds.core.BuilderConfig):
    """Images resized to size x size without cropping."""

    size: int


def stargan_builder(builder_class: type["_StarganZip"], size: int, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder for one size in tfds's data folder, read-only if the data set is prepared."""
    prepared = folder / builder_class.name / str(size) / str(builder_class.VERSION)
    if prepared.exists():
        with wrap_read_errors(prepared, DELETE_TO_PREPARE):
            return tfds.builder_from_directory(prepared)
    return builder_class(data_dir=folder, config=SizeConfig(name=str(size), size=size))


class _StarganZip(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of builders that read a zip archive <root>/{train,val}/<class>/<image> in tfds's manual folder."""

    VERSION = tfds.core.Version("1.0.0")
    ARCHIVE: str
    CLASSES: tuple[str, ...]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download the archive with download.sh of https://github.com/clovaai/stargan-v2 and put it into manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.ARCHIVE} of StarGAN v2, resized to {size} x {size} without cropping.",
            homepage="https://github.com/clovaai/stargan-v2",
            features=tfds.features.FeaturesDict(
                {
                    "file_name": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=self.CLASSES),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        archive = pathlib.Path(dl_manager.manual_dir) / self.ARCHIVE
        return {
            "train": self._generate_examples(archive, "train"),
            "validation": self._generate_examples(archive, "val"),
        }

    def _generate_examples(self, archive: pathlib.Path, folder: str) -> Iterator[tuple[str, dict]]:
        is_empty = True
        for name, data, label in resize_all(self._images(archive, folder), self.builder_config.size):
            is_empty = False
            yield name, {"file_name": name, "image": io.BytesIO(data), "label": label}
        if is_empty:
            raise InputError(f"{archive} has no images in {folder}/{{{','.join(self.CLASSES)}}}; download it again")

    def _images(self, archive: pathlib.Path, folder: str) -> Iterator[tuple[str, bytes, str]]:
        name, seen = archive.name, set()
        try:
            with opened(archive) as file, zipfile.ZipFile(file) as images:
                for member in images.infolist():
                    *_, split, label, file_name = ("", "", *pathlib.PurePosixPath(member.filename).parts)
                    is_image = file_name.lower().endswith((".jpg", ".jpeg", ".png")) and not file_name.startswith(".")
                    if split == folder and label in self.CLASSES and is_image:
                        name = f"{archive.name}/{member.filename}"
                        if name in seen or member.file_size > MAX_UNPACKED_BYTES:
                            size = f"it unpacks to {member.file_size:,} bytes"
                            raise ValueError("the archive has two files of this name" if name in seen else size)
                        seen.add(name)
                        yield name, images.read(member), label
        except Exception as error:  # zipfile raises many types of exceptions for corrupted archives
            raise InputError(f"{name} is corrupted ({error}); download the archive again") from error


class StarganCelebaHq(_StarganZip):
    """CelebA-HQ: 28,000 train and 2,000 validation portraits."""

    ARCHIVE = "celeba_hq.zip"
    CLASSES = ("female", "male")


class Afhq(_StarganZip):
    """Animal Faces HQ: 14,630 train and 1,500 validation portraits of cats, dogs and wild animals."""

    ARCHIVE = "afhq.zip"
    CLASSES = ("cat", "dog", "wild")
