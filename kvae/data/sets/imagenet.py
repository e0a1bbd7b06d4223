"""ImageNet (ILSVRC2012), resized once so that its images can be decoded during training.

The images are written shard by shard; an interrupted preparation resumes after the last complete shard.
"""

import io
import logging
import pathlib
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.fields import CachePath, Size
from kvae.core.files import opened
from kvae.data.dataset import Dataset, declare_images
from kvae.data.records import (
    DELETE_TO_PREPARE,
    data_folder,
    manual_folder,
    read_split,
    resize_all,
    wrap_prepare_errors,
)

log = logging.getLogger(__name__)

_NAME, _VERSION = "kvae_imagenet", "1.0.0"
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_MEMBERS_PER_SHARD = {"train": 8, "validation": 5000}  # class archives; images: 135 shards in all


@declare_images(crop=False)
def imagenet(size: Size = 256, data_dir: CachePath = "") -> Dataset:
    """Loads ImageNet, resized to size x size without cropping (antialiased bilinear; the aspect ratio changes).

    The first call writes `<data_dir>/kvae_imagenet/<size>/1.0.0` (about 45 GB at 256) from the two archives in
    `<data_dir>/downloads/manual`. TensorFlow is not needed. `tfds.builder_from_directory` opens the result. Labels are
    indices of the 1,000 WordNet ids in tfds's order.

    Args:
      size: side of the images in pixels.
      data_dir: the data folder of tfds; empty for its default.

    Raises:
      InputError: an archive is missing or truncated, or an image in it is corrupted.
    """
    with require_extra("train"):
        import tensorflow_datasets as tfds

    folder = data_folder(data_dir) / _NAME / str(size) / _VERSION
    if not folder.exists():
        with wrap_prepare_errors(folder):
            _prepare_imagenet(folder, size, manual_folder(data_dir))
    with wrap_read_errors(folder, DELETE_TO_PREPARE):
        builder = tfds.builder_from_directory(folder)
    return Dataset(
        train=read_split(builder, "train"),
        validation={"validation": read_split(builder, "validation")},
        label_names=tuple(builder.info.features["label"].names),
    )


def _prepare_imagenet(folder: pathlib.Path, size: int, manual: pathlib.Path) -> None:
    """Writes the missing shards, then the metadata, and renames the folder once it is complete."""
    import tensorflow_datasets as tfds

    archives = {split: manual / name for split, name in _ARCHIVES.items()}
    if missing := [path.name for path in archives.values() if not path.exists()]:
        raise InputError(
            f"imagenet is not prepared in {folder}, and {manual} lacks {' and '.join(missing)}; download "
            f"{' and '.join(_ARCHIVES.values())} from image-net.org to that folder"
        )
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=_label_lines("labels.txt")),
        }
    )
    incomplete = folder.with_name(f"incomplete.{folder.name}")
    incomplete.mkdir(parents=True, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(data_dir=incomplete, dataset_name=_NAME, filetype_suffix="array_record")
    splits = [_write_shards(split, archives[split], template, features, size) for split in archives]
    tfds.folder_dataset.write_metadata(
        data_dir=incomplete,
        features=features,
        split_infos=splits,
        version=_VERSION,
        description=f"ILSVRC2012, resized to {size} x {size} without cropping.",
        check_data=False,  # the check needs TensorFlow
    )
    incomplete.rename(folder)


def _write_shards(split: str, archive: pathlib.Path, template, features, size: int):
    """Writes the missing shards of a split, and returns the `tfds.core.SplitInfo` of all its shards."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader
    from tqdm import tqdm

    template = template.replace(split=split)
    images_of = {"train": _class_images, "validation": _validation_images}[split]
    with opened(archive) as file, _open_tar(archive, file) as tar:
        members = list(_members(tar, archive.name))
        if not members:
            raise InputError(f"{archive} is an empty archive; download it again")
        chunk = _MEMBERS_PER_SHARD[split]
        shards = [members[start : start + chunk] for start in range(0, len(members), chunk)]
        paths = [pathlib.Path(path) for path in template.sharded_filepaths(len(shards))]
        on_terminal = sys.stderr.isatty()
        for path, shard in zip(tqdm(paths, f"imagenet {split}", disable=not on_terminal), shards, strict=True):
            if not path.exists():
                _write_shard(path, resize_all(images_of(tar, shard, archive.name), size), features)
                if not on_terminal:
                    log.info("imagenet: wrote %s", path.name)
    lengths = []
    for path in paths:
        with wrap_read_errors(path, DELETE_TO_PREPARE):
            reader = ArrayRecordReader(str(path))
            lengths.append(reader.num_records())
            reader.close()
    num_bytes = sum(path.stat().st_size for path in paths)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)


def _write_shard(path: pathlib.Path, images: Iterable[tuple[str, bytes, str]], features) -> None:
    """Writes (name, JPEG, label) triples to a file, under a temporary name until the file is complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    incomplete = path.with_name(f"incomplete.{path.name}")
    writer = ArrayRecordWriter(str(incomplete), "group_size:1")
    try:
        for name, data, label in images:
            example = {"file_name": pathlib.PurePath(name).name, "image": io.BytesIO(data), "label": label}
            writer.write(features.serialize_example(features.encode_example(example)))
    finally:
        writer.close()
    incomplete.rename(path)


def _class_images(
    tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], archive: str
) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, data, WordNet id) for each image in the class archives, such as n01440764.tar."""
    known = set(_label_lines("labels.txt"))
    for member in members:
        name, wordnet_id = f"{archive}/{member.name}", pathlib.PurePath(member.name).stem
        if wordnet_id not in known:
            raise InputError(f"{name} is not one of the 1,000 class archives of ILSVRC2012, such as n01440764.tar")
        with _open_tar(name, tar.extractfile(member)) as class_tar:
            for image in _members(class_tar, name):
                image_name = f"{name}/{image.name}"
                yield image_name, _read_member(class_tar, image, image_name), wordnet_id


def _validation_images(
    tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo], archive: str
) -> Iterator[tuple[str, bytes, str]]:
    """Yields (name, data, WordNet id) for each validation image.

    The number in an image's name is its line in the list of labels that tfds installs.
    """
    labels = _label_lines("validation_labels.txt")
    for member in members:
        name = f"{archive}/{member.name}"
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", pathlib.PurePath(member.name).name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            raise InputError(f"{name} is not named like a validation image, such as ILSVRC2012_val_00000001.JPEG")
        yield name, _read_member(tar, member, name), labels[number - 1]


def _label_lines(file_name: str) -> list[str]:
    """Returns the WordNet ids in a file that tfds installs with its own ImageNet builder."""
    import tensorflow_datasets as tfds

    return (tfds.core.tfds_path("datasets/imagenet2012") / file_name).read_text().split()


def _open_tar(archive: pathlib.Path | str, file: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(None, "r:", file)
    except Exception as error:  # tarfile raises other exceptions than its own for a corrupted header
        raise InputError(f"{archive} is not a tar archive ({error}); download it again") from error


def _members(tar: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar archive, then checks its end mark: tarfile ends silently at a truncated header."""
    last = "its first member"
    try:
        for member in tar:
            last = member.name
            if member.isfile():
                yield member
        tar.fileobj.seek(tar.offset)
        rest = tar.fileobj.read(tarfile.BLOCKSIZE)
        # The end mark is padded to a full record. More zeros were preallocated by an incomplete download.
        is_complete = rest == bytes(tarfile.BLOCKSIZE) and tar.fileobj.seek(0, 2) - tar.offset <= 2 * tarfile.RECORDSIZE
    except Exception:
        is_complete = False
    if not is_complete:
        raise InputError(f"{name} is truncated or corrupted at {last}; download the archive again")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    try:
        return tar.extractfile(member).read()
    except Exception as error:
        raise InputError(
            f"{name} cannot be read ({error}): the archive is truncated or corrupted; download it again"
        ) from error
