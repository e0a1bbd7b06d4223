"""A mixture of human and animal faces: CelebA-HQ and AFHQ."""

import bisect
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.fields import CachePath, Size
from kvae.data.dataset import Dataset, Example, Examples, declare_images
from kvae.data.records import (
    DELETE_TO_PREPARE,
    RecordExamples,
    data_folder,
    is_prepared,
    manual_folder,
    prepare,
    read_split,
)


@declare_images(crop=False)
def faces(size: Size = 256, data_dir: CachePath = "") -> Dataset:
    """Loads CelebA-HQ and AFHQ: one training set of both, and a validation set for each.

    The first call prepares both from archives in `<data_dir>/downloads/manual`: afhq.zip, and either celeba_hq.zip of
    StarGAN v2 or data<size>x<size>.tar of tfds's celeb_a_hq. The tar archive has no validation split, so its last
    fifteenth (2,000 of 30,000 images) is held out. Images have no labels, because the two sets have different classes.

    Args:
      size: side of the images in pixels.
      data_dir: the data folder of tfds; empty for its default.

    Raises:
      InputError: an archive is missing or corrupted.
    """
    with require_extra("train"):
        from kvae.data.sets.stargan import Afhq, stargan_builder

    root, manual = data_folder(data_dir), manual_folder(data_dir)
    afhq = stargan_builder(Afhq, size, root)
    celeba_hq = _celeba_hq(size, root, manual)
    missing = []
    if celeba_hq is None:
        missing.append(f"celeba_hq.zip (or data{size}x{size}.tar)")
    if not is_prepared(afhq) and not (manual / Afhq.ARCHIVE).exists():
        missing.append(Afhq.ARCHIVE)
    if missing:
        raise InputError(
            f"faces: {manual} lacks {' and '.join(missing)}; "
            "download both zip archives with download.sh of https://github.com/clovaai/stargan-v2"
        )
    sets = {"celeba_hq": _train_and_validation(celeba_hq), "afhq": _train_and_validation(afhq)}
    return Dataset(
        train=Concatenated([train for train, _ in sets.values()]),
        validation={name: validation for name, (_, validation) in sets.items()},
    )


def _celeba_hq(size: int, root: pathlib.Path, manual: pathlib.Path):
    """Returns the tfds builder of CelebA-HQ: a prepared one, else one whose archive exists, else None."""
    import tensorflow_datasets as tfds

    from kvae.data.sets.stargan import StarganCelebaHq, stargan_builder

    candidates = {StarganCelebaHq.ARCHIVE: stargan_builder(StarganCelebaHq, size, root)}
    if str(size) in tfds.builder_cls("celeb_a_hq").builder_configs:  # powers of two
        with wrap_read_errors(root / "celeb_a_hq" / str(size), DELETE_TO_PREPARE):
            candidates[f"data{size}x{size}.tar"] = tfds.builder(f"celeb_a_hq/{size}", data_dir=root)
    prepared = [builder for builder in candidates.values() if is_prepared(builder)]
    possible = [builder for archive, builder in candidates.items() if (manual / archive).exists()]
    return next(iter(prepared + possible), None)


def _train_and_validation(builder) -> tuple[RecordExamples, RecordExamples]:
    """Prepares the data set of a builder, and returns its training and validation examples."""
    prepare(builder, needs_tensorflow=builder.name == "celeb_a_hq")
    splits = ("train", "validation")
    if "validation" not in builder.info.splits:
        held_out = max(1, builder.info.splits["train"].num_examples // 15)
        splits = (f"train[:-{held_out}]", f"train[-{held_out}:]")
    return tuple(read_split(builder, split, fields=("image",)) for split in splits)


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """Several sets of examples, concatenated.

    Attributes:
      parts: the sets.

    Example:
      >>> Concatenated([["a", "b"], ["c"]])[2]
      'c'
    """

    parts: Sequence[Examples]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; it must be from 0 to {len(self) - 1}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    @property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))
